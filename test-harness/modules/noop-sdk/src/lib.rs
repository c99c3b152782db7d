//! Does nothing, with the proxy-wasm crate as it is: what others pay.
#![allow(unsafe_code)] // The crate's entry point is a macro that exports a symbol.

#[cfg(feature = "module")]
mod module {
    use proxy_wasm::{
        traits::{Context, HttpContext, RootContext},
        types::{Action, ContextType, LogLevel},
    };

    struct Noop;

    impl Context for Noop {}

    impl HttpContext for Noop {
        fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
            Action::Continue
        }
    }

    impl RootContext for Noop {
        fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
            Some(Box::new(Noop))
        }
        fn get_type(&self) -> Option<ContextType> {
            Some(ContextType::HttpContext)
        }
    }

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|_| Box::new(Noop));
    }}
}
