//! One byte range (RFC 9110 section 14).

/// Which part of a file is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selection {
    Whole,
    /// Never empty, never beyond the end.
    Part {
        offset: u64,
        len: u64,
    },
    Unsatisfiable,
}

/// Reads a `Range` header against a file of `size` bytes. What is not one well-formed byte range is ignored, as the
/// standard allows: the client then gets the whole file.
pub(super) fn select(header: Option<&str>, size: u64) -> Selection {
    let Some((unit, range)) = header.and_then(|header| header.split_once('=')) else {
        return Selection::Whole;
    };
    let Some((first, last)) = range.trim().split_once('-') else { return Selection::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Selection::Whole;
    }
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => part(first, last.saturating_add(1).min(size)),
        (Some(first), None) if last.is_empty() => part(first, size),
        (None, Some(suffix)) if first.is_empty() => part(size - suffix.min(size), size),
        _ => Selection::Whole,
    }
}

fn part(offset: u64, end: u64) -> Selection {
    match end.checked_sub(offset) {
        None | Some(0) => Selection::Unsatisfiable,
        Some(len) => Selection::Part { offset, len },
    }
}

fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let part = |offset, len| Selection::Part { offset, len };
        for (header, expected) in [
            (None, Selection::Whole),
            (Some("bytes=0-0"), part(0, 1)),
            (Some("bytes=0-99"), part(0, 100)),
            (Some("bytes=10-"), part(10, 90)),
            (Some("bytes=90-200"), part(90, 10)),
            (Some("bytes=-5"), part(95, 5)),
            (Some("bytes=-500"), part(0, 100)),
            (Some("bytes=100-"), Selection::Unsatisfiable),
            (Some("bytes=-0"), Selection::Unsatisfiable),
            (Some("bytes=5-3"), Selection::Whole),
            (Some("bytes=0-1,5-6"), Selection::Whole),
            (Some("bytes=-"), Selection::Whole),
            (Some("bytes=+1-2"), Selection::Whole),
            (Some("lines=0-1"), Selection::Whole),
            (Some("bytes=0-18446744073709551615"), part(0, 100)),
            (Some("bytes=99999999999999999999-"), Selection::Whole),
        ] {
            assert_eq!(select(header, 100), expected, "{header:?}");
        }
        assert_eq!(select(Some("bytes=0-"), 0), Selection::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_nor_outside(header in "bytes=[0-9-]{0,24}", size in any::<u64>()) {
            if let Selection::Part { offset, len } = select(Some(&header), size) {
                prop_assert!(len > 0);
                prop_assert!(offset.checked_add(len).is_some_and(|end| end <= size));
            }
        }
    }
}
