//! Cookie and Set-Cookie.

use super::encoding::SEGMENT;
use super::{Edit, Scan, pieces};
use crate::{Findings, Rule, Rules};
use alloc::borrow::Cow;
use kit::alloc;
use kit::prelude::*;

/// Cleans a Cookie header. Names stay. If `cookie` is a field that is covered, as it usually is, so is every value;
/// else those are whose own names say so.
pub fn cookie<'t>(rules: &Rules, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
    pairs(rules, text, (rules.field("cookie"), true), findings)
}

/// Cleans a Set-Cookie header. The name and the attributes stay; `set-cookie` is as `cookie` in [`cookie`].
pub fn set_cookie<'t>(rules: &Rules, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
    pairs(rules, text, (rules.field("set-cookie"), false), findings)
}

/// What covers values whatever their names say: the first one, or each.
fn pairs<'t>(
    rules: &Rules,
    text: &'t [u8],
    (covered, each): (Option<Rule>, bool),
    findings: &mut Findings,
) -> Cow<'t, [u8]> {
    let scan = Scan::new(rules);
    let mut edit = Edit::new(text);
    for (start, part) in pieces(text, |byte| byte == b';') {
        let name_end = part.iter().position(|byte| *byte == b'=');
        let name = part.get(..name_end.unwrap_or(0)).unwrap_or(&[]).trim_ascii();
        let all = name_end.and_then(|at| part.get(at.saturating_add(1)..)).unwrap_or(part);
        let value = all.trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        // Where the value is: after what stands before it in `all`.
        let lead = all.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
        let quoted = usize::from(value.len() < all.trim_ascii().len());
        let part_end = start.saturating_add(part.len());
        let value_start = part_end.saturating_sub(all.len()).saturating_add(lead).saturating_add(quoted);
        let value_end = value_start.saturating_add(value.len());

        let field = covered.filter(|_| each || start == 0).or_else(|| SEGMENT.find(name, |name| scan.field(name)));
        // An attribute without a value says nothing of anyone, and is only looked at.
        let clean = if let Some(rule) = field {
            let decoded = SEGMENT.decoded(value);
            let cover = rules.cover(rule, &decoded, findings);
            (*cover != *decoded).then(|| SEGMENT.encoded(&cover))
        } else {
            let name = String::from_utf8_lossy(name);
            SEGMENT.clean(scan, &name, value, findings)
        };
        if let Some(clean) = clean {
            edit.replace(value_start, value_end, &clean);
        }
    }
    edit.finish()
}
