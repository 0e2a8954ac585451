//! Sizes as people write and read them: `20GiB`, `500M`, `1048576`.

use cairn_core::units::ByteCount;

/// The text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a size: write it like 20GiB, 500MiB or 1000000000")]
pub struct BadSize;

/// Parses a whole number with an optional unit; `K`, `KiB` … are powers of 1024, `KB` … powers of 1000.
///
/// # Errors
/// [`BadSize`] when it is no number, has an unknown unit or does not fit 64 bits.
pub fn parse(text: &str) -> Result<ByteCount, BadSize> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| BadSize)?;
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(BadSize),
    };
    number.checked_mul(factor).map(ByteCount).ok_or(BadSize)
}

/// `1.5 GiB`: one digit behind the point, from 10 on none.
#[must_use]
pub fn show(bytes: ByteCount) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes.0 < 1024 {
        return format!("{} B", bytes.0);
    }
    // In tenths of the unit, so that no floating point is needed.
    let mut tenths = bytes.0 / 1024 * 10 + bytes.0 % 1024 * 10 / 1024;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    if tenths < 100 {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    } else {
        format!("{} {unit}", tenths / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_written() {
        assert_eq!(parse("20GiB"), Ok(ByteCount(20 << 30)));
        assert_eq!(parse("20 g"), Ok(ByteCount(20 << 30)));
        assert_eq!(parse("5GB"), Ok(ByteCount(5_000_000_000)));
        assert_eq!(parse("4096"), Ok(ByteCount(4096)));
        for bad in ["", "GiB", "-1", "1.5G", "20 giga", "99999999999T"] {
            assert_eq!(parse(bad), Err(BadSize), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(show(ByteCount(1023)), "1023 B");
        assert_eq!(show(ByteCount(1536)), "1.5 KiB");
        assert_eq!(show(ByteCount(20 << 30)), "20 GiB");
        assert_eq!(show(ByteCount(1 << 40)), "1.0 TiB");
        assert_eq!(show(ByteCount(u64::MAX)), "16777215 TiB");
    }
}
