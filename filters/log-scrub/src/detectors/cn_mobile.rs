//! Chinese mobile numbers: eleven digits, of which the first are 13 to 19 (the ministry's numbering plan), also in
//! groups of 3, 4 and 4, and after `+86`, `86` or `0086`.

use super::Found;
use crate::context;
use crate::digits::{Cluster, Group, stands_alone};
use crate::view::View;

pub(super) fn find(view: &View<'_>, cluster: &Cluster, from: Group) -> Option<Found> {
    if !matches!((from.len(), view.at(from.start)), (3 | 11, b'1') | (2 | 13, b'8') | (4 | 15, b'0')) {
        return None;
    }
    let mut digits = [0_u8; 15];
    let mut lengths = [0_usize; 4];
    let (mut count, mut last) = (0_usize, from);
    for (group, length) in cluster.joined(view, from).zip(&mut lengths) {
        let text = view.slice(group.start, group.end);
        digits.get_mut(count..count.saturating_add(text.len()))?.copy_from_slice(text);
        count = count.saturating_add(text.len());
        *length = text.len();
        last = group;
        if count >= 11 {
            break;
        }
    }
    let digits = digits.get(..count)?;
    let prefix = count.checked_sub(11)?;
    let (country, number) = digits.split_at_checked(prefix)?;
    let written = matches!(lengths, [11 | 13 | 15, 0, 0, 0] | [3, 4, 4, 0] | [2 | 4, 11, 0, 0] | [2 | 4, 3, 4, 4]);
    let plus = view.before(from.start) == b'+' && from.start > view.first();
    let start = if plus { from.start.saturating_sub(1) } else { from.start };
    let known = match country {
        b"86" => true,
        b"" | b"0086" => !plus,
        _ => false,
    };
    let mobile = matches!(number, [b'1', b'3'..=b'9', ..]);
    let found = written && known && mobile && stands_alone(view, start, last.end);
    (found && (plus || !context::labels_other(view, start))).then(|| Found::new(start, last.end))
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};

    #[test]
    fn numbers() {
        found(
            "cn_mobile",
            &[
                ("13800138000", "[cn_mobile]"),
                ("手机13800138000，", "手机[cn_mobile]，"),
                ("138 0013 8000", "[cn_mobile]"),
                ("138-0013-8000", "[cn_mobile]"),
                ("+8613800138000", "[cn_mobile]"),
                ("+86 138 0013 8000", "[cn_mobile]"),
                ("+86-13800138000", "[cn_mobile]"),
                ("008613800138000", "[cn_mobile]"),
                ("{\"mobile\":19912345678}", "{\"mobile\":[cn_mobile]}"),
            ],
        );
    }

    #[test]
    fn no_numbers() {
        // Higress takes timestamps for mobiles.
        untouched(
            "cn_mobile",
            &[
                "1700000000",
                "1700000000000",
                "1700000000000000",
                "1700000000000000000",
                "12800138000",
                "1380013800",
                "138001380001",
                "x13800138000",
                "13800138000x",
                "1380013800.5",
                "0.13800138000",
                "order_no=13800138000",
                "\"traceId\":\"13800138000\"",
                "138 00138 000",
                "+1380013800",
                "2024-01-02 13:80:01",
            ],
        );
    }
}
