//! How filters become a module: [`export!`](crate::export) for one, [`compose!`](crate::compose) for several.

/// Makes a crate's filter a module: the one line at the end of its `lib.rs`.
///
/// It stands for nothing unless the crate is built for wasm with its feature `module`, so that a module of several
/// filters can link their crates without their entry points meeting.
#[macro_export]
macro_rules! export {
    ($filter:ty) => {
        #[cfg(all(feature = "module", target_arch = "wasm32"))]
        #[allow(unsafe_code, missing_docs, unreachable_pub)]
        mod module {
            use super::*;
            use $crate::{Filter as _, Next, Pass, Vm, abi};

            static VM: abi::Single<Vm<$filter>> = abi::Single(Vm::new());

            /// Read by the build: which callbacks to keep.
            #[used]
            #[unsafe(link_section = "mesh-filters-phases")]
            static PHASES: [u8; 2] = <$filter>::PHASES.bytes();

            fn number(next: Next) -> u32 {
                match next {
                    Next::Continue => 0,
                    Next::Stop => 1,
                }
            }

            fn pass(pass: Pass) -> u32 {
                match pass {
                    Pass::On => 0,
                    Pass::Hold => 1,
                }
            }

            /// The version of the ABI, in the name.
            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_abi_version_0_2_1() {}

            #[unsafe(no_mangle)]
            pub extern "C" fn _initialize() {
                abi::initialize();
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
                abi::allocate(size)
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_context_create(id: u32, parent: u32) {
                VM.0.create_context(&abi::WasmHost, id, parent);
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_configure(id: u32, _size: usize) -> u32 {
                abi::follow_log_level();
                u32::from(VM.0.configure(&abi::WasmHost, id))
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_tick(id: u32) {
                VM.0.tick(&abi::WasmHost, id);
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_http_call_response(
                id: u32,
                call: u32,
                pairs: usize,
                size: usize,
                _trailers: usize,
            ) {
                VM.0.answered(&abi::WasmHost, id, call, (pairs, size));
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_new_connection(id: u32) -> u32 {
                VM.0.connection(&abi::WasmHost, id);
                0
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_request_headers(id: u32, _pairs: usize, end_of_stream: u32) -> u32 {
                number(VM.0.request_headers(&abi::WasmHost, id, end_of_stream != 0))
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_response_headers(id: u32, _pairs: usize, end_of_stream: u32) -> u32 {
                number(VM.0.response_headers(&abi::WasmHost, id, end_of_stream != 0))
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_request_body(id: u32, size: usize, end_of_stream: u32) -> u32 {
                pass(VM.0.request_body(&abi::WasmHost, id, size, end_of_stream != 0))
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_request_trailers(id: u32, _pairs: usize) -> u32 {
                VM.0.request_trailers(&abi::WasmHost, id);
                0
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_response_body(id: u32, size: usize, end_of_stream: u32) -> u32 {
                pass(VM.0.response_body(&abi::WasmHost, id, size, end_of_stream != 0))
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_response_trailers(id: u32, _pairs: usize) -> u32 {
                VM.0.response_trailers(&abi::WasmHost, id);
                0
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_log(id: u32) {
                VM.0.log(&abi::WasmHost, id);
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_delete(id: u32) {
                VM.0.delete_context(id);
            }
        }
    };
}

/// Whether a name is in a list: for [`compose!`](crate::compose), while it is compiled.
#[doc(hidden)]
pub const fn lists(mut names: &[&str], name: &str) -> bool {
    while let [first, rest @ ..] = names {
        if same(first.as_bytes(), name.as_bytes()) {
            return true;
        }
        names = rest;
    }
    false
}

const fn same(mut one: &[u8], mut other: &[u8]) -> bool {
    while let ([first, one_rest @ ..], [second, other_rest @ ..]) = (one, other) {
        if *first != *second {
            return false;
        }
        (one, other) = (one_rest, other_rest);
    }
    one.is_empty() && other.is_empty()
}

/// Makes one filter of several, without touching any of them: `pub mod name: Type = "name" { key: Filter, … }`.
///
/// The configuration has a key per filter, `{"trace_id": {…}, "stamp": {…}}`; one that is left out makes no
/// hostcall (callbacks that only it needs are entered all the same), and a refusal names the filter it comes from. Requests pass the filters in the order given and responses in the reverse,
/// as in a chain of the proxy; logs in the order given. They share one read of the headers, and each sees what those
/// before it changed. Attributes go to the configuration.
#[macro_export]
macro_rules! compose {
    ($(#[$attribute:meta])* $vis:vis mod $module:ident: $suite:ident = $title:literal {
        $($(#[$field_doc:meta])* $name:ident: $filter:ty),+ $(,)?
    }) => {
        $vis mod $module {
            #![allow(missing_docs)]
            use super::*;
            use $crate::{Answer, Body, Context, Filter, Flow, Headers, Metric, Pass, Phases, Refusal, RootContext};

            pub struct $suite { $($name: Option<$filter>),+ }

            $(#[$attribute])*
            #[derive($crate::serde::Deserialize)]
            #[serde(crate = "kit::serde", deny_unknown_fields)]
            pub struct Config { $($(#[$field_doc])* #[serde(default)] pub $name: Option<<$filter as Filter>::Config>),+ }

            #[derive(Default)]
            pub struct State { $($name: <$filter as Filter>::State),+ }

            #[derive(Default)]
            pub struct Stream { $($name: <$filter as Filter>::Stream),+ }

            impl Filter for $suite {
                const NAME: &'static str = $title;
                const PHASES: Phases = Phases::NONE$(.and(<$filter>::PHASES))+;
                const SHARED: &'static [&'static str] = {
                    // Each once, also where several filters share it.
                    const NAMES: &([&str; 0$(+ <$filter>::SHARED.len())+], usize) = &{
                        let (mut names, mut count) = ([""; 0$(+ <$filter>::SHARED.len())+], 0);
                        $(let mut index = 0;
                        while index < <$filter>::SHARED.len() {
                            let name = <$filter>::SHARED[index];
                            if !$crate::lists(&names, name) {
                                (names[count], count) = (name, count + 1);
                            }
                            index += 1;
                        })+
                        (names, count)
                    };
                    NAMES.0.split_at(NAMES.1).0
                };
                type Config = Config;
                type State = State;
                type Stream = Stream;

                fn new(config: Config) -> Result<Self, Refusal> {
                    Ok(Self {$(
                        $name: match config.$name {
                            Some(config) => {
                                Some(<$filter>::new(config).map_err(|refusal| refusal.within(stringify!($name)))?)
                            }
                            None => None,
                        }
                    ),+})
                }

                fn max_series(&self) -> Option<usize> {
                    // Of those that are there; with none of them nothing is counted.
                    [$(self.$name.as_ref().and_then(Filter::max_series)),+].into_iter().max().flatten()
                }

                fn metrics() -> $crate::prelude::Vec<&'static Metric> {
                    [$(<$filter>::metrics()),+].concat()
                }

                fn configured(&self, cx: &mut RootContext<'_, Self>) {
                    $(if let Some(filter) = &self.$name {
                        filter.configured(&mut $crate::compose!(@root cx $name));
                    })+
                }

                fn tick_ms(&self) -> u32 {
                    // One tick for all: who wants fewer sees that it is too soon.
                    let wanted = [$(self.$name.as_ref().map_or(0, Filter::tick_ms)),+];
                    wanted.into_iter().filter(|ms| *ms > 0).min().unwrap_or(0)
                }

                fn tick(&self, cx: &mut RootContext<'_, Self>) {
                    $(if <$filter>::PHASES.has(Phases::TICK) && let Some(filter) = &self.$name {
                        filter.tick(&mut $crate::compose!(@root cx $name));
                    })+
                }

                fn answered(&self, cx: &mut RootContext<'_, Self>, call: u32, answer: &Answer<'_>) {
                    $(if <$filter>::PHASES.has(Phases::ANSWERED) && let Some(filter) = &self.$name {
                        filter.answered(&mut $crate::compose!(@root cx $name), call, answer);
                    })+
                }

                fn request_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
                    $($crate::compose!(@headers request_headers REQUEST_HEADERS self cx headers $name $filter);)+
                    Flow::Continue
                }

                fn response_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
                    $crate::compose!(@reverse response_headers (self cx headers) $($name $filter,)+);
                    Flow::Continue
                }

                fn request_body(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) -> Pass {
                    let mut pass = Pass::On;
                    $(if <$filter>::PHASES.has(Phases::REQUEST_BODY) && let Some(filter) = &self.$name
                        && filter.request_body(&mut $crate::compose!(@context cx $name), body) == Pass::Hold
                    {
                        pass = Pass::Hold;
                    })+
                    pass
                }

                fn request_trailers(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) {
                    $(if <$filter>::PHASES.has(Phases::REQUEST_TRAILERS) && let Some(filter) = &self.$name {
                        filter.request_trailers(&mut $crate::compose!(@context cx $name), body);
                    })+
                }

                fn response_body(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) -> Pass {
                    let mut pass = Pass::On;
                    $crate::compose!(@reverse response_body (self cx body pass) $($name $filter,)+);
                    pass
                }

                fn response_trailers(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) {
                    $crate::compose!(@reverse response_trailers (self cx body) $($name $filter,)+);
                }

                fn connection(&self, cx: &mut Context<'_, Self>) {
                    $(if <$filter>::PHASES.has(Phases::CONNECTION) && let Some(filter) = &self.$name {
                        filter.connection(&mut $crate::compose!(@context cx $name));
                    })+
                }

                fn log(&self, cx: &mut Context<'_, Self>, request: &Headers<'_>, response: &Headers<'_>) {
                    $(if <$filter>::PHASES.has(Phases::LOG) && let Some(filter) = &self.$name {
                        filter.log(&mut $crate::compose!(@context cx $name), request, response);
                    })+
                }
            }
        }
    };
    (@root $cx:ident $name:ident) => {
        RootContext {
            host: $cx.host,
            rng: &mut *$cx.rng,
            metrics: &mut *$cx.metrics,
            state: &mut $cx.state.$name,
        }
    };
    (@context $cx:ident $name:ident) => {
        Context {
            host: $cx.host,
            rng: &mut *$cx.rng,
            metrics: &mut *$cx.metrics,
            state: &mut $cx.state.$name,
            stream: &mut $cx.stream.$name,
            common: $cx.common,
        }
    };
    (@headers $method:ident $phase:ident $self:ident $cx:ident $headers:ident $name:ident $filter:ty) => {
        if <$filter>::PHASES.has(Phases::$phase) && let Some(filter) = &$self.$name {
            let flow = filter.$method(&mut $crate::compose!(@context $cx $name), $headers);
            if flow != Flow::Continue {
                return flow;
            }
        }
    };
    (@response_headers ($self:ident $cx:ident $headers:ident) $name:ident $filter:ty) => {
        $crate::compose!(@headers response_headers RESPONSE_HEADERS $self $cx $headers $name $filter);
    };
    (@response_body ($self:ident $cx:ident $body:ident $pass:ident) $name:ident $filter:ty) => {
        if <$filter>::PHASES.has(Phases::RESPONSE_BODY) && let Some(filter) = &$self.$name
            && filter.response_body(&mut $crate::compose!(@context $cx $name), $body) == Pass::Hold
        {
            $pass = Pass::Hold;
        }
    };
    (@response_trailers ($self:ident $cx:ident $body:ident) $name:ident $filter:ty) => {
        if <$filter>::PHASES.has(Phases::RESPONSE_TRAILERS) && let Some(filter) = &$self.$name {
            filter.response_trailers(&mut $crate::compose!(@context $cx $name), $body);
        }
    };
    // The first of the list last.
    (@reverse $method:ident $with:tt) => {};
    (@reverse $method:ident $with:tt $name:ident $filter:ty, $($rest:tt)*) => {
        $crate::compose!(@reverse $method $with $($rest)*);
        $crate::compose!(@$method $with $name $filter);
    };
}
