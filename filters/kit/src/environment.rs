//! The environment of a VM, which the operator sets: `vm_config.environment_variables`, or a mesh's `vmConfig.env`.

use crate::prelude::*;

/// The value of an environment variable. It is the same for as long as the VM is. Natively, that of the process; in
/// tests, of the emulated VM.
pub fn environment(name: &str) -> Option<String> {
    #[cfg(target_arch = "wasm32")]
    return wasi::variable(name);
    #[cfg(all(not(target_arch = "wasm32"), any(test, feature = "testing")))]
    return crate::testing::variable(name);
    #[cfg(not(any(target_arch = "wasm32", test, feature = "testing")))]
    return std::env::var(name).ok();
}

/// Two functions of WASI, written here because only std would bring them.
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
mod wasi {
    use crate::prelude::*;
    use core::ptr::null_mut;

    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn environ_sizes_get(count: *mut usize, size: *mut usize) -> u32;
        fn environ_get(pointers: *mut *mut u8, text: *mut u8) -> u32;
    }

    pub(super) fn variable(name: &str) -> Option<String> {
        let (mut count, mut size) = (0, 0);
        // SAFETY: the host writes two numbers.
        if unsafe { environ_sizes_get(&mut count, &mut size) } != 0 {
            return None;
        }
        let (mut pointers, mut text) = (vec![null_mut(); count], vec![0; size]);
        // SAFETY: there is room for as many pointers and as much text as the host said.
        if unsafe { environ_get(pointers.as_mut_ptr(), text.as_mut_ptr()) } != 0 {
            return None;
        }
        // `NAME=value`, each with a NUL at its end.
        text.split(|byte| *byte == 0).find_map(|pair| {
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(String::from_utf8_lossy(value).into_owned())
        })
    }
}
