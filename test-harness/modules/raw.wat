;; A filter without an instruction in it, called for the headers of every request and for nothing else: what one callback
;; costs. It can have no state per request, because nobody tells it when a request begins or ends.
(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "_initialize"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0)))
