//! How fast this machine moves segments: the lower of its own rate limits and its site's.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use cairn_array::pace::{Limit, Pace, Rates};

use serde::{Deserialize, Serialize};

use crate::{daemon, home::Home};

/// A running agent reads its limits twice a second.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The rate limits of a process that moves segments.
#[derive(Clone, Debug)]
pub struct RateLimits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upload: Pace,
    download: Pace,
    told: Mutex<Told>,
}

/// What was said about limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// By this machine's owner.
    pub own: Rates,
    /// By the site's administrator.
    pub site: Rates,
}

impl RateLimits {
    #[must_use]
    pub fn new(own: Rates) -> Self {
        let inner =
            Inner { upload: Pace::default(), download: Pace::default(), told: Mutex::default() };
        let limits = Self(Arc::new(inner));
        limits.set_own(own);
        limits
    }

    /// As its owner and its site said last.
    ///
    /// # Errors
    /// When a file of theirs is there but unreadable.
    pub fn of(home: &Home) -> Result<Self> {
        let limits = Self::new(home.rates()?);
        limits.set_site(home.site_rates()?);
        Ok(limits)
    }

    /// Of what this machine sends.
    #[must_use]
    pub fn upload(&self) -> Pace {
        self.0.upload.clone()
    }

    /// Of what this machine receives.
    #[must_use]
    pub fn download(&self) -> Pace {
        self.0.download.clone()
    }

    #[must_use]
    pub fn told(&self) -> Told {
        *self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_own(&self, own: Rates) {
        self.set(|told| told.own = own);
    }

    pub fn set_site(&self, site: Rates) {
        self.set(|told| told.site = site);
    }

    fn set(&self, change: impl FnOnce(&mut Told)) {
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *told;
        change(&mut told);
        if *told != before {
            let Rates { upload, download } = told.own.within(told.site);
            self.0.upload.set(upload);
            self.0.download.set(download);
            tracing::info!(own = %told.own, site = %told.site, "rate limits");
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "limits     {}", self.own.within(self.site))?;
        if self.site != Rates::default() {
            writeln!(f, "           of the site: {}; own: {}", self.site, self.own)?;
        }
        Ok(())
    }
}

/// `cairn-agent limit`: keeps new limits, those that are named, and waits until a running agent follows; what counts now, for
/// people.
///
/// # Errors
/// When this agent has not joined, or the running agent does not follow.
pub async fn limit(home: &Home, upload: Option<Limit>, download: Option<Limit>) -> Result<String> {
    home.membership()?;
    let before = home.rates()?;
    let rates = before.with(upload, download);
    if rates != before {
        home.keep_rates(&rates)?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Some(status) = daemon::ask_status(&home.socket()).await? else {
            return Ok(format!("{rates}, from the next start on (`cairn-agent run`)\n"));
        };
        if status.limits.own == rates {
            return Ok(status.limits.to_string());
        }
        if Instant::now() >= deadline {
            bail!("the limits are kept, but the running agent does not follow; see its log");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_lower_limit_counts_until_it_is_lifted() {
        let rate = |text: &str| Some(text.parse().unwrap());
        let limits = RateLimits::new(Rates { upload: rate("8Mbit/s"), download: None });
        limits.set_site(Rates { upload: rate("80Mbit/s"), download: rate("80Mbit/s") });
        let upload = limits.upload();
        let timed = async |pace: &Pace| {
            let begun = tokio::time::Instant::now();
            pace.pass(10_000_000).await;
            begun.elapsed().as_secs()
        };
        assert_eq!(timed(&upload).await, 10);
        assert_eq!(timed(&limits.download()).await, 1);
        limits.set_own(Rates::default());
        assert_eq!(timed(&upload).await, 1, "the site's limit is left");
        let said = limits.told().to_string();
        assert!(said.contains("limits     upload 80 Mbit/s, download 80 Mbit/s"), "{said}");
    }
}
