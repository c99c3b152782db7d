//! Attributes: what `proxy_get_property` finds.

use std::time::Duration;

use crate::abi::{Pairs, Status};
use crate::world::{Ctx, World};

/// A value in the bytes that the proxy gives a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(pub(crate) Vec<u8>);

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<i64> for Value {
    /// 8 bytes, little-endian.
    fn from(number: i64) -> Self {
        Self(number.to_le_bytes().to_vec())
    }
}

impl From<u64> for Value {
    /// 8 bytes, little-endian.
    fn from(number: u64) -> Self {
        Self(number.to_le_bytes().to_vec())
    }
}

impl From<bool> for Value {
    /// One byte.
    fn from(flag: bool) -> Self {
        Self(vec![u8::from(flag)])
    }
}

impl From<Duration> for Value {
    /// Nanoseconds, as an `i64`.
    fn from(duration: Duration) -> Self {
        Self::from(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// What a path leads to, from where the VM is in.
pub(crate) fn find(world: &World, vm: usize, path: &[&[u8]]) -> Option<Vec<u8>> {
    let owned: Vec<Vec<u8>> = path.iter().map(|part| part.to_vec()).collect();
    let stream = match world.ctx(vm) {
        Some(Ctx::Stream { id, leg }) => world.streams.get(&id).map(|stream| (stream, leg)),
        _ => None,
    };
    if let Some(value) = stream.and_then(|(stream, _)| stream.properties.get(&owned)) {
        return Some(value.clone());
    }
    if let Some(value) = world.properties.get(&owned) {
        return Some(value.clone());
    }
    let root = world.root_of(vm, world.context(vm));
    match path {
        [b"plugin_name"] => return Some(world.roots[root?].plugin.name.clone().into_bytes()),
        [b"plugin_root_id"] => return Some(world.roots[root?].plugin.root_id.clone().into_bytes()),
        [b"plugin_vm_id"] => return Some(world.vms[vm].id.clone().into_bytes()),
        _ => {}
    }
    let (stream, leg) = stream?;
    match path {
        [b"filter_state", key] => stream.filter_state.get(*key).cloned(),
        [b"request", rest @ ..] => {
            let headers = stream.readable(leg, crate::abi::map::REQUEST_HEADERS);
            match rest {
                [b"time"] => Some(Value::from(i64::try_from(stream.started_ns).ok()?).0),
                [b"duration"] if stream.logging => {
                    Some(Value::from(Duration::from_nanos(world.now_ns - stream.started_ns)).0)
                }
                [b"headers", name] => joined(headers?, name),
                [b"path"] => joined(headers?, b":path"),
                [b"method"] => joined(headers?, b":method"),
                [b"scheme"] => joined(headers?, b":scheme"),
                [b"host"] => joined(headers?, b":authority"),
                [b"referer"] => joined(headers?, b"referer"),
                [b"useragent"] => joined(headers?, b"user-agent"),
                [b"id"] => joined(headers?, b"x-request-id"),
                [b"url_path"] => joined(headers?, b":path").map(|path| split_query(&path).0),
                [b"query"] => joined(headers?, b":path").map(|path| split_query(&path).1),
                _ => None,
            }
        }
        [b"response", rest @ ..] => {
            let headers = stream.readable(leg, crate::abi::map::RESPONSE_HEADERS);
            match rest {
                [b"headers", name] => joined(headers?, name),
                [b"code"] => {
                    let status = joined(stream.maps[2].as_ref()?, b":status")?;
                    Some(Value::from(str::from_utf8(&status).ok()?.parse::<i64>().ok()?).0)
                }
                _ => None,
            }
        }
        [key] => stream.filter_state.get([b"wasm.", *key].concat().as_slice()).cloned(),
        _ => None,
    }
}

/// The status of what leads to nothing: what holds others is there, but has no bytes of its own.
pub(crate) fn missing(world: &World, vm: usize, path: &[&[u8]]) -> Status {
    const HOLDERS: [&[u8]; 8] =
        [b"connection", b"destination", b"filter_state", b"request", b"response", b"source", b"upstream", b"xds"];
    match (world.ctx(vm), path) {
        (Some(Ctx::Stream { .. }), [one]) if HOLDERS.contains(one) => Status::SERIALIZATION_FAILURE,
        _ => Status::NOT_FOUND,
    }
}

/// All values of a name, with a comma between them.
fn joined(pairs: &Pairs, name: &[u8]) -> Option<Vec<u8>> {
    let values: Vec<&[u8]> =
        pairs.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice()).collect();
    if values.is_empty() { None } else { Some(values.join(&b","[..])) }
}

fn split_query(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    match path.iter().position(|byte| *byte == b'?') {
        Some(at) => (path[..at].to_vec(), path[at + 1..].to_vec()),
        None => (path.to_vec(), Vec::new()),
    }
}
