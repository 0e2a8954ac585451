//! What tests of this crate share: a site with its CA, an image registered into memory, a fleet of real peer services.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use cairn_core::{
    erasure::Recipe,
    id::{AgentId, ImageId, InstallId, SegmentId, VersionId},
    layout::{DataSegment, Held, Layout, Member as Holder, converge},
    manifest::{Draft, Public, Secret, SegmentEntry},
    planner::{Candidate, Plan, plan},
    seal::{SealKey, Sealer},
    sign::SigningKey,
    stripe_map::{ShardPlace, StripeIndex, StripeMap},
    units::{ByteCount, Generation},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    dsf::CheckedSegment,
    map_reader::PriorVersion,
    pace::Pace,
    peer::{Found, SegmentSource, routes},
    register::{Counters, Input, RawSource, SegmentSink, register},
    tls::{Member, NameTable, Papers, Trust, client, serve, server_tls},
};

/// A CA as the server makes one.
pub(crate) struct Site {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub(crate) ca_pem: String,
}

impl Site {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let ca_pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), ca_pem }
    }

    pub(crate) fn papers(&self, name: &str) -> Papers {
        self.papers_until(name, time::OffsetDateTime::now_utc() + time::Duration::DAY)
    }

    pub(crate) fn papers_until(&self, name: &str, end: time::OffsetDateTime) -> Papers {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = end;
        let certificate_pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Papers { certificate_pem, key_pem: key.serialize_pem(), ca_pem: self.ca_pem.clone() }
    }
}

/// Segments in memory.
#[derive(Clone, Default)]
pub(crate) struct Memory(pub(crate) HashMap<SegmentId, Vec<u8>>);

impl SegmentSink for Memory {
    fn put(&mut self, segment: CheckedSegment) -> anyhow::Result<()> {
        let known = self.0.insert(segment.id(), segment.bytes().to_vec());
        assert!(known.is_none(), "a random key never seals the same segment twice");
        Ok(())
    }
}

pub(crate) const CONTENT_KEY: SealKey = SealKey([6; 32]);

pub(crate) fn signer() -> SigningKey {
    SigningKey::from_seed(&[1; 32]).unwrap()
}

pub(crate) struct Version {
    pub(crate) signed: Vec<u8>,
    pub(crate) public: Public,
    pub(crate) secret: Secret,
}

pub(crate) fn input(image: &[u8]) -> Input {
    let source =
        RawSource::new(std::io::Cursor::new(image.to_vec()), Some(ByteCount(image.len() as u64)));
    Input { source: Box::new(source), any_content: true }
}

/// Registers and signs, as the server does.
pub(crate) fn version(
    image: &[u8],
    prior: Option<&Version>,
    store: &mut Memory,
) -> (Version, Counters) {
    let counters = Arc::new(Counters::default());
    let held = store.0.clone();
    let fetch = move |entry: &SegmentEntry| Ok(Bytes::from(held[&entry.id].clone()));
    let prior = prior.map(|prior| PriorVersion {
        public: &prior.public,
        secret: &prior.secret,
        fetch: &fetch,
    });
    let done = register(input(image), prior, store, &counters, &CancellationToken::new()).unwrap();
    let signer = signer();
    let draft = Draft {
        image: ImageId([1; 16]),
        version: VersionId([2; 16]),
        size: done.size,
        data: done.data,
        map: done.map,
        wrapped_key: Vec::new(),
        secret: Secret {
            name: "test".to_owned(),
            number: 1,
            registered_at: 0,
            data_blocks: done.data_blocks,
            data_keys: done.data_keys,
            map_keys: done.map_keys,
        },
    };
    let signed = draft.seal(&CONTENT_KEY, &signer);
    let public = Public::open(&signer.verifying_key(), &signed).unwrap();
    let secret = public.open_secret(&CONTENT_KEY).unwrap();
    (Version { signed, public, secret }, Arc::into_inner(counters).unwrap())
}

/// What a peer does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Honest,
    /// Its port is closed.
    Dead,
    /// Serves other bytes of the same length.
    Lying,
    /// Says that it holds nothing.
    Empty,
}

#[derive(Clone)]
struct PeerStore {
    segments: Arc<Mutex<HashMap<SegmentId, Bytes>>>,
    manner: Manner,
}

impl SegmentSource for PeerStore {
    async fn segment(&self, id: SegmentId, _: Member) -> anyhow::Result<Found> {
        let found = self.segments.lock().unwrap().get(&id).cloned();
        let found: Option<Bytes> = match self.manner {
            Manner::Empty => None,
            Manner::Lying => found.map(|bytes| bytes.iter().map(|byte| byte ^ 1).collect()),
            Manner::Honest | Manner::Dead => found,
        };
        Ok(found.map_or(Found::NotHere, Found::Here))
    }
}

/// A fleet that holds one image: real services on loopback.
pub(crate) struct Fleet {
    pub(crate) site: Site,
    pub(crate) map: StripeMap,
    pub(crate) agents: Vec<AgentId>,
    pub(crate) names: Arc<NameTable>,
    stop: CancellationToken,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Fleet {
    /// Spreads `version` over as many clients as there are `manners`; `server` says what the server does.
    pub(crate) async fn start(
        version: &Version,
        store: &Memory,
        manners: &[Manner],
        server: Manner,
    ) -> Self {
        let agents: Vec<_> =
            (0..manners.len()).map(|n| AgentId([u8::try_from(n + 1).unwrap(); 16])).collect();
        let (map, parity) = spread(version, store, &agents);
        let site = Site::new();
        let names = Arc::new(NameTable::default());
        let stop = CancellationToken::new();
        for (agent, manner) in agents.iter().zip(manners) {
            let shards = map.stripes.iter().flat_map(|stripe| stripe.shards());
            let held = shards.filter(|(_, shard)| map.agents(shard).any(|holder| holder == *agent));
            let segments = held.map(|(_, shard)| {
                let bytes = store.0.get(&shard.id).or_else(|| parity.0.get(&shard.id)).unwrap();
                (shard.id, Bytes::from(bytes.clone()))
            });
            let addr =
                listen(&site, Member::Agent(*agent), segments.collect(), *manner, &stop).await;
            names.set(Member::Agent(*agent), addr);
        }
        let all = store.0.iter().map(|(id, bytes)| (*id, Bytes::from(bytes.clone()))).collect();
        let addr = listen(&site, Member::Server, all, server, &stop).await;
        names.set(Member::Server, addr);
        Self { site, map, agents, names, stop }
    }

    /// A client with a target's certificate.
    pub(crate) fn client(&self) -> reqwest::Client {
        self.client_of(InstallId([9; 16]))
    }

    pub(crate) fn client_of(&self, install: InstallId) -> reqwest::Client {
        let papers = self.site.papers(&Member::Target(install).dns_name());
        client(&Trust::Ca(self.site.ca_pem.clone()), Some(&papers), Arc::clone(&self.names))
            .unwrap()
    }
}

async fn listen(
    site: &Site,
    member: Member,
    segments: HashMap<SegmentId, Bytes>,
    manner: Manner,
    stop: &CancellationToken,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    if manner != Manner::Dead {
        let source = PeerStore { segments: Arc::new(Mutex::new(segments)), manner };
        let app =
            routes(source, Arc::new(|member| matches!(member, Member::Target(_))), Pace::default());
        let tls = server_tls(&site.papers(&member.dns_name())).unwrap();
        tokio::spawn(serve(listener, tls, app, stop.clone()));
    }
    addr
}

/// Plans, lays out and computes parity, as the server does.
fn spread(version: &Version, store: &Memory, agents: &[AgentId]) -> (StripeMap, Memory) {
    let data: Vec<_> = version
        .public
        .segments()
        .map(|entry| DataSegment { id: entry.id, bytes: entry.bytes, device: 0 })
        .collect();
    let candidates: Vec<_> = agents
        .iter()
        .map(|agent| Candidate {
            agent: *agent,
            room: ByteCount(1 << 34),
            availability: 0.8,
            holds: false,
        })
        .collect();
    let needed = data.iter().map(|segment| u64::from(segment.bytes)).sum();
    let Plan { redundancy, group, .. } = plan(&candidates, ByteCount(needed)).unwrap();
    let members: Vec<_> = group.iter().map(|agent| Holder { agent: *agent, room: 4096 }).collect();
    let layout = converge(None, &data, redundancy, &members, &Held::new()).unwrap();
    let mut parity = Memory::default();
    let computed = compute_parity(&layout, store, &mut parity);
    (layout.map(version.public.image.into(), Generation(1), &computed).unwrap(), parity)
}

fn compute_parity(
    layout: &Layout,
    store: &Memory,
    parity: &mut Memory,
) -> HashMap<(StripeIndex, u8), SegmentId> {
    layout
        .to_compute()
        .map(|(index, row, bytes)| {
            let stripe = &layout.stripes[index.0 as usize];
            let data = u8::try_from(stripe.data.len()).unwrap();
            let recipe = Recipe::encode(stripe.k, data, &[ShardPlace(stripe.k + row)]).unwrap();
            let sources: Vec<&[u8]> =
                stripe.data.iter().map(|shard| &store.0[&shard.id][..]).collect();
            let shard = recipe.whole(&sources, &[bytes as usize]).unwrap().remove(0);
            let id = SegmentId::of(&shard);
            parity.0.insert(id, shard);
            ((index, row), id)
        })
        .collect()
}

/// Blocks that do not compress and differ from each other.
pub(crate) fn noise(blocks: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; blocks * 4096];
    Sealer::new(&SealKey([seed; 32])).seal(0, b"noise", &mut bytes);
    bytes.truncate(blocks * 4096);
    bytes
}
