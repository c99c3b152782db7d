//! The header pairs of one phase: read once, as bytes, and written back in one batch.

use crate::host::{Bytes, Host, Map};
use crate::prelude::*;
use core::cell::OnceCell;

/// One header map in one phase.
///
/// Nothing is read until a filter looks, and then everything at once: one hostcall, whatever the number of filters.
/// Changes are seen at once by the filters that come after, and go to the host when the last of them is done.
///
/// Names are lower case. Values are the bytes that came over the wire, whatever they are.
pub struct Headers<'h> {
    host: &'h dyn Host,
    map: Map,
    ends: bool,
    pairs: OnceCell<Pairs>,
    edits: &'h mut Edits,
}

impl<'h> Headers<'h> {
    /// A view that has read nothing yet. `edits` is scratch space, emptied here.
    pub(crate) fn new(host: &'h dyn Host, map: Map, ends: bool, edits: &'h mut Edits) -> Self {
        edits.clear();
        Self { host, map, ends, pairs: OnceCell::new(), edits }
    }

    /// Whether they are all of the message: neither a body nor trailers follow.
    pub fn ends(&self) -> bool {
        self.ends
    }

    fn pairs(&self) -> &Pairs {
        // A host that will not give its headers has none: the filters go on with what that means to them.
        self.pairs.get_or_init(|| self.host.header_pairs(self.map).map(Pairs::new).unwrap_or_default())
    }

    /// Reads them all now, for who will [`Headers::look`] at more than one: one hostcall for all.
    pub fn read(&self) {
        self.pairs();
    }

    /// All pairs in order, changes of this phase included.
    pub fn iter<'a>(&'a self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a, 'h> {
        let edits: &Edits = self.edits;
        let original = self.pairs().iter().filter(move |(name, _)| !edits.replaces(name));
        original.chain(edits.added())
    }

    /// The value of the first pair of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// What `look` makes of a header's value. For the one or two headers that a phase looks at: one hostcall for each,
    /// where [`Headers::get`] would read them all; where they have been read already, none. The values of several pairs
    /// of that name may come joined by commas.
    pub fn look<R>(&self, name: &str, look: impl FnOnce(Option<&[u8]>) -> R) -> R {
        match self.find(name) {
            Found::Here(value) => look(value),
            Found::Asked(value) => look(value.as_deref()),
        }
    }

    // Once in a module, and not once for each look.
    #[inline(never)]
    fn find(&self, name: &str) -> Found<'_> {
        if self.pairs.get().is_some() || !self.edits.list.is_empty() {
            return Found::Here(self.get(name));
        }
        Found::Asked(self.host.header(self.map, name).ok())
    }

    /// The values of every pair of that name, in order.
    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a, 'n, 'h> {
        let edits: &'a Edits = self.edits;
        let original = self.pairs().iter().filter(move |(n, _)| *n == name.as_bytes() && !edits.replaces(n));
        let added = edits.added().filter(move |(n, _)| *n == name.as_bytes());
        original.chain(added).map(|(_, value)| value)
    }

    /// Makes `value` the only value of that name.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        self.edits.push(Op::Set, name.as_bytes(), value);
    }

    /// Adds a pair beside those of the same name.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        self.edits.push(Op::Add, name.as_bytes(), value);
    }

    /// Removes every pair of that name.
    pub fn remove(&mut self, name: &str) {
        self.edits.push(Op::Remove, name.as_bytes(), &[]);
    }

    /// Gives the changes to the host. Each write clears the route cache, so what changes nothing is not written.
    pub(crate) fn flush(self) {
        let Self { host, map, ref pairs, ref edits, .. } = self;
        for (index, edit) in edits.list.iter().enumerate() {
            let (name, value) = edits.text(edit);
            if edits
                .list
                .iter()
                .skip(index.saturating_add(1))
                .any(|later| later.op != Op::Add && edits.text(later).0 == name)
            {
                continue; // A later change of the same name makes this one void.
            }
            // What is there is known only if somebody looked; else it is written whatever it is.
            let mut there = pairs.get().map(|pairs| pairs.iter().filter(|(n, _)| *n == name).map(|(_, value)| value));
            let first = there.as_mut().and_then(Iterator::next);
            let single = there.is_some_and(|mut rest| rest.next().is_none());
            // A write that fails leaves the header as it was; there is nothing better to do with a request under way.
            let _ = match edit.op {
                Op::Add => host.add_header(map, name, value),
                Op::Remove if single && first.is_none() => Ok(()),
                Op::Remove => host.remove_header(map, name),
                Op::Set if single && first == Some(value) => Ok(()),
                Op::Set => host.replace_header(map, name, value),
            };
        }
    }
}

/// A header's value: among what was read, or from the host alone.
enum Found<'a> {
    Here(Option<&'a [u8]>),
    Asked(Option<Bytes>),
}

/// Pairs in the ABI's encoding: count, then a length of name and value each (all u32 little-endian), then name, NUL,
/// value, NUL for each. Read in place.
#[derive(Default)]
struct Pairs(Bytes);

impl Pairs {
    fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    fn iter(&self) -> PairsIter<'_> {
        let count = read_u32(&self.0).unwrap_or(0);
        let table = count.saturating_mul(8);
        let sizes = self.0.get(4..).unwrap_or_default();
        let (sizes, data) = sizes.split_at_checked(table).unwrap_or_default();
        PairsIter { sizes, data }
    }
}

#[derive(Clone)]
struct PairsIter<'a> {
    sizes: &'a [u8],
    data: &'a [u8],
}

impl<'a> Iterator for PairsIter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (size, sizes) = self.sizes.split_at_checked(8)?;
        self.sizes = sizes;
        let (name, data) = self.data.split_at_checked(read_u32(size)?)?;
        let (value, data) = data.get(1..)?.split_at_checked(read_u32(size.get(4..)?)?)?;
        self.data = data.get(1..)?;
        Some((name, value))
    }
}

/// Writes pairs in the same encoding. What is longer than 4 GiB is cut, and no host takes as much.
#[cfg(any(target_arch = "wasm32", test, feature = "testing"))]
pub(crate) fn encode(pairs: &[(String, Vec<u8>)]) -> Vec<u8> {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = number(pairs.len()).to_vec();
    for (name, value) in pairs {
        out.extend(number(name.len()));
        out.extend(number(value.len()));
    }
    for (name, value) in pairs {
        out.extend(name.as_bytes());
        out.push(0);
        out.extend(value);
        out.push(0);
    }
    out
}

fn read_u32(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(*bytes.first_chunk()?)).ok()
}

/// Changes not yet written. Names and values lie in one buffer that the VM keeps from request to request.
#[derive(Default)]
pub(crate) struct Edits {
    list: Vec<Edit>,
    text: Vec<u8>,
}

struct Edit {
    op: Op,
    start: usize,
    name: usize,
    value: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Set,
    Add,
    Remove,
}

/// What the scratch space may keep between requests; a larger one goes back after the request that needed it.
const KEPT: usize = 16 * 1024;
/// The same for the list of changes.
const KEPT_EDITS: usize = 256;

impl Edits {
    fn clear(&mut self) {
        self.list.clear();
        self.list.shrink_to(KEPT_EDITS);
        self.text.clear();
        self.text.shrink_to(KEPT);
    }

    fn push(&mut self, op: Op, name: &[u8], value: &[u8]) {
        let start = self.text.len();
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        self.list.push(Edit { op, start, name: name.len(), value: value.len() });
    }

    fn text(&self, edit: &Edit) -> (&[u8], &[u8]) {
        let text = self.text.get(edit.start..).unwrap_or_default();
        let (name, rest) = text.split_at_checked(edit.name).unwrap_or_default();
        (name, rest.get(..edit.value).unwrap_or_default())
    }

    /// Whether the pairs of that name that the host gave are gone.
    fn replaces(&self, name: &[u8]) -> bool {
        self.list.iter().any(|edit| edit.op != Op::Add && self.text(edit).0 == name)
    }

    /// The pairs that the changes add, without those that a later change takes away again.
    fn added(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.list.iter().enumerate().filter(|(_, edit)| edit.op != Op::Remove).filter_map(|(index, edit)| {
            let (name, value) = self.text(edit);
            let later = self.list.get(index.saturating_add(1)..).unwrap_or_default();
            let void = later.iter().any(|l| l.op != Op::Add && self.text(l).0 == name);
            (!void).then_some((name, value))
        })
    }
}
