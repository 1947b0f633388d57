//! Ranges of ports.

use std::sync::Arc;

use crate::model::Protocol;

/// Ports `first..=last` of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Range {
    pub(super) protocol: Protocol,
    pub(super) first: u16,
    pub(super) last: u16,
}

impl Range {
    /// Number of ports.
    pub(super) fn size(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }
}

/// Ranges sorted, disjoint and not adjacent.
pub(super) type Ranges = Arc<[Range]>;

/// Brings ranges into their one form.
pub(super) fn normal(mut ranges: Vec<Range>) -> Ranges {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last)
                if last.protocol == range.protocol && u32::from(range.first) <= u32::from(last.last) + 1 =>
            {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged.into()
}

/// What is in `all` but in none of `ranges`, which are sorted and disjoint.
pub(super) fn gaps<'a>(ranges: impl Iterator<Item = &'a Range>, all: Range) -> Vec<Range> {
    let mut gaps = Vec::new();
    let mut next = Some(all.first);
    for range in ranges {
        if let Some(first) = next.filter(|&first| first < range.first) {
            gaps.push(Range { first, last: range.first - 1, ..all });
        }
        next = range.last.checked_add(1);
    }
    if let Some(first) = next {
        gaps.push(Range { first, ..all });
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_ranges_leave() {
        let range = |first, last| Range { protocol: Protocol::Tcp, first, last };
        let all = range(0, 65535);
        assert_eq!(gaps([range(0, 5), range(7, 65534)].iter(), all), [range(6, 6), range(65535, 65535)]);
        assert_eq!(gaps([range(1, 65535)].iter(), all), [range(0, 0)]);
        assert_eq!(gaps([].iter(), all), [all]);
    }

    #[test]
    fn ranges_have_one_form() {
        let range = |first, last| Range { protocol: Protocol::Udp, first, last };
        let ranges =
            vec![range(5, 6), range(1, 3), range(4, 4), range(65535, 65535), range(2, 2), range(8, 9)];
        assert_eq!(*normal(ranges), [range(1, 6), range(8, 9), range(65535, 65535)]);
    }
}
