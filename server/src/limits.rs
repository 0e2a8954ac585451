//! The site's rate limits: how fast each of its machines moves segments at most, this server among them.

use std::sync::{PoisonError, RwLock};

use anyhow::Context as _;
use cairn_array::pace::{Pace, Rates};

use crate::db::{self, Db};

const KEY: &str = "rate-limits";

/// The limits, as they are kept and obeyed.
#[derive(Debug)]
pub(crate) struct SiteLimits {
    rates: RwLock<Rates>,
    upload: Pace,
}

impl SiteLimits {
    /// Those that were kept; none before any were.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) async fn open(db: &Db) -> anyhow::Result<Self> {
        let kept = db.setting(KEY).await.context("read the rate limits")?;
        let rates = match kept {
            Some(kept) => serde_json::from_slice(&kept).context("parse the rate limits")?,
            None => Rates::default(),
        };
        let upload = Pace::default();
        upload.set(rates.upload);
        Ok(Self { rates: RwLock::new(rates), upload })
    }

    pub(crate) fn rates(&self) -> Rates {
        *self.rates.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pace of what this server sends.
    pub(crate) fn upload(&self) -> Pace {
        self.upload.clone()
    }

    /// Keeps and obeys other limits.
    pub(crate) async fn set(&self, db: &Db, rates: Rates) -> db::Result<()> {
        let kept = serde_json::to_vec(&rates).unwrap_or_default();
        db.keep_setting(KEY, &kept).await?;
        *self.rates.write().unwrap_or_else(PoisonError::into_inner) = rates;
        self.upload.set(rates.upload);
        tracing::info!(limits = %rates, "rate limits of the site");
        Ok(())
    }
}
