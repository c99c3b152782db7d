//! The examples as they stand: Envoy takes each, with the built modules.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong shall stop"
)]

use std::process::Command;

use test_harness::{envoy, root};

#[test]
fn envoy_takes_every_example_as_it_stands() {
    let folder = root().join("examples/envoy");
    let mut seen = 0;
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        // As its first lines say: from the root of the project. `validate` makes the VM and configures the plugin.
        let output = Command::new(envoy::binary().unwrap())
            .current_dir(root())
            .args(["--mode", "validate", "--log-level", "warning", "-c"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        seen += 1;
    }
    assert!(seen > 0, "no example in {}", folder.display());
}
