//! Finding a segment of an image or a volume wherever it is: in the store, with clients, or in what is left of its stripe.
//!
//! ```text
//!   store ─► enough of its stripe in the store? ─► its holders ──────────────┐
//!                                                    └ slow ─► its stripe ───┴─► the first that comes
//! ```
//!
//! Invariant: whatever is given hashes to the id that was asked for.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use cairn_array::{peer::PeerClient, store::Store, volume::Elsewhere};
use cairn_core::{
    erasure::Recipe,
    fetch::Source,
    id::{SegmentId, StripeSetId},
    sign::VerifyingKey,
    stripe_map::{Shard, ShardPlace, Stripe, StripeIndex, StripeMap},
    units::Generation,
};
use futures::{FutureExt as _, StreamExt as _, future::select_ok, stream};
use tokio::runtime::Handle;

use crate::db::{
    Db,
    stripe_set::Owner,
    volume::{VolumeLayout, VolumeRow},
};

/// How long holders are waited for before what is left of the stripe is asked for, too.
const HEDGE: Duration = Duration::from_millis(200);
/// Shards of a stripe that are fetched at once.
const AT_ONCE: usize = 8;

/// See the module.
#[derive(Debug)]
pub struct Finder {
    db: Db,
    store: Arc<Store>,
    verifier: VerifyingKey,
    peers: PeerClient,
    runtime: Handle,
    /// The newest map of each set that was asked for.
    maps: Mutex<HashMap<StripeSetId, Arc<Indexed>>>,
}

/// A stripe map, and where each segment is in it.
#[derive(Debug)]
struct Indexed {
    number: Generation,
    map: StripeMap,
    places: HashMap<SegmentId, (StripeIndex, ShardPlace)>,
}

impl Indexed {
    fn of(map: StripeMap) -> Self {
        let stripes = (0..).map(StripeIndex).zip(&map.stripes);
        let places = stripes.flat_map(|(index, stripe)| {
            stripe.shards().map(move |(place, shard)| (shard.id, (index, place)))
        });
        Self { number: map.number, places: places.collect(), map }
    }

    fn find(&self, id: SegmentId) -> Option<(&Stripe, ShardPlace)> {
        let (index, place) = self.places.get(&id)?;
        Some((self.map.stripes.get(index.0 as usize)?, *place))
    }
}

/// One place of a stripe, with its shard.
type Placed<'a> = (ShardPlace, &'a Shard);

impl Finder {
    /// Asks clients by `peers`, as maps say that are signed by `verifier`.
    #[must_use]
    pub fn new(db: Db, store: Arc<Store>, verifier: VerifyingKey, peers: PeerClient) -> Self {
        let (runtime, maps) = (Handle::current(), Mutex::default());
        Self { db, store, verifier, peers, runtime, maps }
    }

    /// Asks clients.
    pub(crate) const fn peers(&self) -> &PeerClient {
        &self.peers
    }

    /// Where its calls run.
    pub(crate) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// A segment's bytes, from the store or from elsewhere.
    ///
    /// # Errors
    /// When nobody has it, and its stripe lacks too much.
    pub async fn find(&self, id: SegmentId) -> anyhow::Result<Bytes> {
        let kept = match self.store.get_segment(id).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        let found = self.elsewhere(id).await.with_context(|| format!("{kept}"))?;
        found.with_context(|| format!("{kept}, and no stripe map names it"))
    }

    /// A segment's bytes without the copy in the store, which is lost or damaged; none when no stripe map names it.
    ///
    /// # Errors
    /// When nobody has it, and its stripe lacks too much.
    pub async fn elsewhere(&self, id: SegmentId) -> anyhow::Result<Option<Bytes>> {
        let Some(set) = self.db.set_of_segment(id).await.context("look for its set")? else {
            return Ok(None);
        };
        let Some(indexed) = self.indexed(set).await? else { return Ok(None) };
        let Some((stripe, place)) = indexed.find(id) else { return Ok(None) };
        let others: Vec<Placed<'_>> = stripe.shards().filter(|(at, _)| *at != place).collect();
        let shard = stripe.shard(place).context("look for its shard")?;
        let mut local = Vec::new();
        for (at, other) in &others {
            // What is there but cannot be read is somebody else's to tell.
            if local.len() < stripe.data.len()
                && self.store.has_segment(other.id).await.unwrap_or(false)
                && let Ok(bytes) = self.store.get_segment(other.id).await
            {
                local.push((*at, bytes));
            }
        }
        if local.len() >= stripe.data.len() {
            return rebuild(stripe, (place, shard), local).await.map(Some);
        }
        let direct = self.ask_holders(&indexed.map, shard).boxed();
        let rest = async {
            if !shard.holders.is_empty() {
                tokio::time::sleep(HEDGE).await;
            }
            self.ask_stripe(&indexed.map, stripe, (place, shard), &others, local).await
        };
        let (bytes, _) = select_ok([direct, rest.boxed()]).await?;
        Ok(Some(bytes))
    }

    async fn indexed(&self, set: StripeSetId) -> anyhow::Result<Option<Arc<Indexed>>> {
        let newest = self.db.stripe_map_number(set).await.context("look for the stripe map")?;
        let Some(number) = newest else { return Ok(None) };
        let known = || self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(indexed) = known().get(&set).filter(|indexed| indexed.number >= number) {
            return Ok(Some(Arc::clone(indexed)));
        }
        let kept = self.db.stripe_map_of_set(set).await.context("read the stripe map")?;
        let Some(kept) = kept else { return Ok(None) };
        let map = StripeMap::open(&self.verifier, &kept.signed).context("open the stripe map")?;
        let indexed = Arc::new(Indexed::of(map));
        known().insert(set, Arc::clone(&indexed));
        Ok(Some(indexed))
    }

    async fn ask_holders(&self, map: &StripeMap, shard: &Shard) -> anyhow::Result<Bytes> {
        let mut told = Vec::new();
        for agent in map.agents(shard) {
            match self.peers.fetch(Source::Peer(agent), shard.id, shard.bytes, None).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => told.push(format!("client {agent} {error}")),
            }
        }
        if told.is_empty() {
            bail!("no client holds it");
        }
        bail!(told.join(", "))
    }

    /// Rebuilds a shard from those of its stripe that are here and those that clients give.
    async fn ask_stripe(
        &self,
        map: &StripeMap,
        stripe: &Stripe,
        wanted: Placed<'_>,
        others: &[Placed<'_>],
        mut have: Vec<(ShardPlace, Bytes)>,
    ) -> anyhow::Result<Bytes> {
        let need = stripe.data.len();
        let is_here = |place: ShardPlace| have.iter().any(|(at, _)| *at == place);
        let remote: Vec<Placed<'_>> =
            others.iter().filter(|(place, _)| !is_here(*place)).copied().collect();
        let fetches: Vec<_> = remote
            .into_iter()
            .map(|(place, shard)| {
                async move { (place, self.ask_holders(map, shard).await) }.boxed()
            })
            .collect();
        let mut fetched = stream::iter(fetches).buffer_unordered(AT_ONCE);
        let mut told = String::new();
        while have.len() < need
            && let Some((place, bytes)) = fetched.next().await
        {
            match bytes {
                Ok(bytes) => have.push((place, bytes)),
                Err(error) => told = format!(": {error:#}"),
            }
        }
        ensure!(
            have.len() >= need,
            "its stripe has {} of the {need} segments that are needed{told}",
            have.len()
        );
        rebuild(stripe, wanted, have).await
    }

    /// Puts a segment back where it belongs, unless that is with the clients.
    async fn keep(&self, id: SegmentId, bytes: &Bytes) -> anyhow::Result<()> {
        let Some(set) = self.db.set_of_segment(id).await? else { return Ok(()) };
        if let Some(Owner::Volume(volume)) = self.db.owner_of_set(set).await? {
            let with_clients = |row: VolumeRow| row.layout == VolumeLayout::ServerParity;
            if self.db.volume(volume).await?.is_none_or(with_clients) {
                return Ok(());
            }
        }
        self.store.put_segment(id, bytes.clone()).await.context("put it into the store again")
    }
}

/// A shard from enough others of its stripe.
async fn rebuild(
    stripe: &Stripe,
    (place, shard): Placed<'_>,
    have: Vec<(ShardPlace, Bytes)>,
) -> anyhow::Result<Bytes> {
    let (k, data) = (stripe.k, u8::try_from(stripe.data.len())?);
    let (id, length) = (shard.id, shard.bytes as usize);
    let made = tokio::task::spawn_blocking(move || -> anyhow::Result<Bytes> {
        let present: Vec<_> = have.iter().map(|(at, _)| *at).collect();
        let recipe = Recipe::new(k, data, &present, &[place])?;
        let by_place: HashMap<_, _> = have.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
        let sources: Vec<&[u8]> =
            recipe.sources().iter().filter_map(|at| by_place.get(at).copied()).collect();
        let shards = recipe.whole(&sources, &[length])?;
        let bytes = Bytes::from(shards.into_iter().next().context("nothing was rebuilt")?);
        ensure!(SegmentId::of(&bytes) == id, "its stripe rebuilds other bytes than its id names");
        Ok(bytes)
    });
    made.await.context("wait for a rebuild")?
}

impl Elsewhere for Finder {
    fn segment(&self, id: SegmentId) -> io::Result<Bytes> {
        let found = self.runtime.block_on(async {
            let found = self.elsewhere(id).await?;
            if let Some(bytes) = &found
                && let Err(error) = self.keep(id, bytes).await
            {
                tracing::warn!(segment = %id, error = format!("{error:#}"), "a segment stays with the clients");
            }
            anyhow::Ok(found)
        });
        match found {
            Ok(Some(bytes)) => {
                tracing::debug!(segment = %id, "a segment that the store lacks came from elsewhere");
                Ok(bytes)
            }
            Ok(None) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(io::Error::other(format!("{error:#}"))),
        }
    }
}
