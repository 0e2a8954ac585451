//! Owner first: how much of somebody's disk the guest may use, and when.
//!
//! ```text
//!   terms (lend, reserve, daily writes)          what the owner or administrator allows
//!   space (total, available)  ──► sizer ──►      how large the storage file is now
//!   medium (flash, rotational, …) ──► policy     how gently it is used
//!   power (mains, battery)    ──► pause
//!   ledger                    ──► daily cap      how much was written to flash today
//! ```
//!
//! Everything here is a pure decision or a short look at the system; the daemon's `guest` task acts on it.

mod ledger;
mod medium;
mod power;
mod sizer;
mod space;

use std::{fmt, str::FromStr};

use cairn_array::dsf::SlotCount;
use cairn_core::units::ByteCount;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

pub use self::{
    ledger::{Day, Ledger},
    medium::{Medium, MediumClass, medium_of},
    power::on_battery,
    sizer::{Decision, Held, Sizer, first_size},
    space::Space,
};
use crate::size;

/// What stays free when nothing else was said: a tenth of the file system, at least 10 GiB.
const RESERVE_PERCENT: u8 = 10;
const LEAST_RESERVE: ByteCount = ByteCount(10 << 30);
/// Of the file system's size, what may be written to flash on one day: a drive rated for 600 full writes outlives it
/// thirty years.
const DAILY_PERCENT: u8 = 5;
/// Small media may be filled within a few days all the same.
const LEAST_DAILY: ByteCount = ByteCount(8 << 30);

/// A part of a file system: `20GiB`, or `15%` of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Bytes(ByteCount),
    /// 0 to 100.
    Percent(u8),
}

impl Amount {
    /// In bytes, on a file system of this size.
    #[must_use]
    pub fn of(self, total: ByteCount) -> ByteCount {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => percent_of(total, percent),
        }
    }
}

fn percent_of(total: ByteCount, percent: u8) -> ByteCount {
    let part = u128::from(total.0) * u128::from(percent) / 100;
    ByteCount(u64::try_from(part).unwrap_or(u64::MAX))
}

/// The text is neither a size nor a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an amount: write a size like 20GiB, or a share of the disk like 15%")]
pub struct BadAmount;

impl FromStr for Amount {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, BadAmount> {
        match text.trim().strip_suffix('%') {
            Some(share) => match share.trim().parse() {
                Ok(percent @ 0..=100) => Ok(Self::Percent(percent)),
                _ => Err(BadAmount),
            },
            None => size::parse(text).map(Self::Bytes).map_err(|_| BadAmount),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&size::show(*bytes)),
            Self::Percent(percent) => write!(f, "{percent} %"),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bytes(bytes) => serializer.collect_str(bytes),
            Self::Percent(percent) => serializer.collect_str(&format_args!("{percent}%")),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Not even one segment fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{lend} is too little to lend: lend at least 8MiB, better 20GiB; `cairn-agent leave` ends lending"
)]
pub struct TooLittle {
    pub lend: Amount,
}

/// What the guest may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The most that the storage file takes.
    pub lend: Amount,
    /// What stays free for the owner; none: a tenth of the file system, at least 10 GiB.
    pub reserve: Option<Amount>,
    /// The most that is written on one day; none: what is kind to the medium.
    pub daily_writes: Option<Amount>,
}

impl Terms {
    /// Whether anything could be lent on a file system of this size.
    ///
    /// # Errors
    /// [`TooLittle`].
    pub fn check(&self, total: ByteCount) -> Result<(), TooLittle> {
        match self.slots(total) {
            SlotCount(0) => Err(TooLittle { lend: self.lend }),
            SlotCount(_) => Ok(()),
        }
    }

    /// The most slots that the storage file may have on this file system.
    #[must_use]
    pub fn slots(&self, total: ByteCount) -> SlotCount {
        SlotCount::fitting(self.lend.of(total))
    }

    /// What stays free on this file system.
    #[must_use]
    pub fn kept_free(&self, total: ByteCount) -> ByteCount {
        let usual = || percent_of(total, RESERVE_PERCENT).max(LEAST_RESERVE);
        self.reserve.map_or_else(usual, |reserve| reserve.of(total))
    }

    /// The most that may be written on one day to such a medium; none: as much as comes.
    #[must_use]
    pub fn daily_cap(&self, total: ByteCount, medium: MediumClass) -> Option<ByteCount> {
        let usual = || percent_of(total, DAILY_PERCENT).max(LEAST_DAILY);
        match self.daily_writes {
            Some(amount) => Some(amount.of(total)),
            None => medium.wears().then(usual),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn terms(text: &str) -> Terms {
        Terms { lend: text.parse().unwrap(), reserve: None, daily_writes: None }
    }

    #[test]
    fn amounts_are_read_as_written_and_kept_exactly() {
        assert_eq!("20GiB".parse(), Ok(Amount::Bytes(ByteCount(20 * GIB))));
        assert_eq!("15 %".parse(), Ok(Amount::Percent(15)));
        for bad in ["", "%", "101%", "-1%", "1.5%", "many"] {
            assert_eq!(bad.parse::<Amount>(), Err(BadAmount), "{bad}");
        }
        for amount in [Amount::Percent(15), Amount::Bytes(ByteCount(123_456_789))] {
            let text = serde_json::to_string(&amount).unwrap();
            assert_eq!(serde_json::from_str::<Amount>(&text).unwrap(), amount, "{text}");
        }
    }

    #[test]
    fn a_tenth_and_at_least_ten_gib_stay_free_unless_something_else_is_said() {
        assert_eq!(terms("1GiB").kept_free(ByteCount(50 * GIB)), LEAST_RESERVE);
        assert_eq!(terms("1GiB").kept_free(ByteCount(500 * GIB)), ByteCount(50 * GIB));
        let said = Terms { reserve: Some(Amount::Percent(20)), ..terms("1GiB") };
        assert_eq!(said.kept_free(ByteCount(50 * GIB)), ByteCount(10 * GIB));
    }

    #[test]
    fn what_wears_out_has_a_daily_cap() {
        let total = ByteCount(1000 * GIB);
        let cap = |medium| terms("20GiB").daily_cap(total, medium);
        assert_eq!(cap(MediumClass::Rotational), None);
        assert_eq!(cap(MediumClass::Flash), Some(ByteCount(50 * GIB)));
        let said = Terms { daily_writes: Some(Amount::Bytes(ByteCount(7))), ..terms("1GiB") };
        assert_eq!(said.daily_cap(total, MediumClass::Rotational), Some(ByteCount(7)));
    }
}
