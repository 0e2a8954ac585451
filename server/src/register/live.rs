//! The registrations that are under way, and how far each is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use cairn_array::register::Counters;
use cairn_core::{id::VersionId, units::ByteCount};

use crate::{api::image::Registration, db::image::NewVersion};

/// The registrations that are under way.
#[derive(Debug, Default)]
pub struct Registrations(Arc<Mutex<BTreeMap<VersionId, Live>>>);

#[derive(Debug)]
struct Live {
    name: String,
    number: u32,
    total: Option<ByteCount>,
    counters: Arc<Counters>,
    began: Instant,
}

/// Keeps a registration in the list until it is dropped.
#[derive(Debug)]
pub struct Listed {
    list: Arc<Mutex<BTreeMap<VersionId, Live>>>,
    version: VersionId,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.version);
    }
}

impl Registrations {
    /// Lists a registration, with counters that the engine keeps up to date.
    pub fn list(
        &self,
        name: &str,
        new: NewVersion,
        total: Option<ByteCount>,
        counters: Arc<Counters>,
    ) -> Listed {
        let name = name.to_owned();
        let live = Live { name, number: new.number, total, counters, began: Instant::now() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(new.version, live);
        Listed { list: Arc::clone(&self.0), version: new.version }
    }

    /// How far each is.
    #[must_use]
    pub fn all(&self) -> Vec<Registration> {
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.values().map(Live::view).collect()
    }
}

impl Live {
    fn view(&self) -> Registration {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let position = read(&self.counters.position);
        let seconds = self.began.elapsed().as_secs_f64();
        let pace = u128::from(position) * 1000 / self.began.elapsed().as_millis().max(1);
        let bytes_per_second = u64::try_from(pace).unwrap_or(u64::MAX);
        let left = self.total.map(|total| total.0.saturating_sub(position));
        Registration {
            name: self.name.clone(),
            number: self.number,
            position,
            total: self.total.map(|total| total.0),
            data: read(&self.counters.data),
            free: read(&self.counters.free),
            deduplicated: read(&self.counters.deduplicated),
            stored: read(&self.counters.stored),
            seconds,
            bytes_per_second,
            seconds_left: left.and_then(|left| left.checked_div(bytes_per_second)),
        }
    }
}
