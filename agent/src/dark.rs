//! The site as its clients know it, opened with the recovery key or a grant: what there is without the server.
//!
//! Invariants: what is not signed by this site is refused, and with the recovery key what does not open with it; nothing that
//! is opened here is written to a disk.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use cairn_array::{
    authority::SiteKeys,
    bundle as site_bundle,
    peer::PeerClient,
    tls::{self, Authority, Fingerprint, Member, NameTable, Trust},
    wire::{ImageLine, split_name},
    wrap::{Identity, RecoveryKey},
};
use cairn_core::{
    bundle::{self, Item},
    directory::Directory,
    grant::Grant,
    id::{AgentId, VersionId, VolumeId},
    manifest::Public,
    seal::SealKey,
    sign::VerifyingKey,
    stripe_map::StripeMap,
    units::{BLOCK_BYTES, ByteCount},
    volume::{Durability, checkpoint::Root},
};
use futures::{FutureExt as _, future::select_ok};

use crate::{
    home::{Home, Membership},
    lan::{self, Looking},
    limits::RateLimits,
};

/// What the members may take, where the directory says that they are, before those found on the LAN are asked elsewhere.
const AT_LEAST: Duration = Duration::from_millis(500);

/// An image version that can be installed.
pub struct Image {
    pub name: String,
    pub number: u32,
    pub version: VersionId,
    pub size: ByteCount,
    /// Sealed bytes of its segments.
    pub stored: ByteCount,
    /// Signed.
    pub manifest: Bytes,
    pub content_key: SealKey,
}

/// A file that machines boot by.
#[derive(Debug)]
pub struct BootFile {
    pub name: String,
    pub content: Vec<u8>,
}

/// A stripe map, and as the server signed it.
#[derive(Debug)]
pub struct Map {
    pub map: StripeMap,
    pub signed: Bytes,
}

/// A volume, as of its last checkpoint that clients know.
pub struct Volume {
    pub name: String,
    pub id: VolumeId,
    pub size: ByteCount,
    pub durability: Durability,
    /// Signed.
    pub root: Bytes,
    pub content_key: SealKey,
}

/// The images and volumes of the site that can be opened.
#[derive(Debug)]
pub struct Catalog {
    pub signing_key: VerifyingKey,
    pub images: Vec<Image>,
    pub volumes: Vec<Volume>,
    pub stripe_maps: Vec<Map>,
}

/// All that the clients know of their site.
#[derive(Debug)]
pub struct DarkSite {
    pub authority: Authority,
    pub fingerprint: Fingerprint,
    pub directory: Directory,
    /// As the server signed it.
    pub signed_directory: Bytes,
    pub catalog: Catalog,
    pub boot_files: Vec<BootFile>,
}

/// What opens what the clients hold.
#[derive(Clone, Debug)]
pub enum Opener {
    /// The file of the site's recovery key: opens every image.
    RecoveryKey(PathBuf),
    /// The file of a grant for this client: opens the images that it names.
    Grant(PathBuf),
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({})", self.full_name())
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({})", self.name)
    }
}

impl Image {
    /// `NAME@N`
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}@{}", self.name, self.number)
    }

    /// As `cairn-agent images` lists it.
    #[must_use]
    pub fn line(&self) -> ImageLine {
        ImageLine {
            name: self.name.clone(),
            number: self.number,
            size: self.size,
            stored: self.stored,
        }
    }
}

/// The clients of the site, as this one reaches them.
#[derive(Debug)]
pub struct Clients {
    /// Shows this client's papers and knows every member's address.
    pub peers: PeerClient,
    /// Members that may be asked.
    pub members: Vec<AgentId>,
    /// For those that are elsewhere than the directory says.
    pub looking: Looking,
}

/// Opens the images that clients hold, by the directory on this client's disk and the bundle that the others hold.
///
/// # Errors
/// When the opener is not this site's or not good any more, or what is needed is held by nobody that can be reached.
pub async fn open(home: &Home, opener: &Opener) -> Result<(Catalog, Clients)> {
    let membership = home.membership()?;
    match opener {
        Opener::RecoveryKey(key) => {
            let (directory, _, recovery, keys) = unlock(home, &membership, key)?;
            let clients = Clients::of(home, &directory)?;
            let bytes = clients.catalog(&directory).await?;
            let verifier = keys.signer()?.verifying_key();
            let (catalog, _) = catalog(verifier, &bytes, Keyring::All(&recovery))?;
            Ok((catalog, clients))
        }
        Opener::Grant(file) => {
            let (directory, _) = directory(home, &membership)?;
            let signed = cairn_array::grant::read(file)?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let (site, me) = (membership.site, membership.agent);
            let grant = Grant::open(&signed, &membership.signing_key, site, me, now)?;
            let clients = Clients::of(home, &directory)?;
            let bytes = clients.catalog(&directory).await?;
            let (catalog, _) = catalog(membership.signing_key, &bytes, Keyring::Granted(&grant))?;
            ensure!(
                !catalog.images.is_empty(),
                "the clients hold none of what the grant names: the images were removed, or clients have not fetched them yet"
            );
            Ok((catalog, clients))
        }
    }
}

/// The directory on this client's disk, as it is and as the server signed it, the recovery key and what it opens.
fn unlock(
    home: &Home,
    membership: &Membership,
    recovery_key: &Path,
) -> Result<(Directory, Vec<u8>, Identity, SiteKeys)> {
    let RecoveryKey { identity: recovery, site } = RecoveryKey::read(recovery_key)?;
    let (directory, signed) = directory(home, membership)?;
    let keys = keys(&directory, &recovery)?;
    ensure!(
        site.is_none_or(|site| keys.fingerprint().is_ok_and(|keys| keys == site)),
        "the directory on this client's disk is of another site than the recovery key's file names"
    );
    Ok((directory, signed, recovery, keys))
}

/// Opens all of the site with its recovery key, by the directory on this client's disk and the bundle that others hold.
///
/// # Errors
/// When the key is not this site's, or what is needed is held by nobody that can be reached.
pub async fn open_site(home: &Home, recovery_key: &Path) -> Result<(DarkSite, Clients)> {
    let (directory, signed, recovery, keys) = unlock(home, &home.membership()?, recovery_key)?;
    let clients = Clients::of(home, &directory)?;
    clients.looking.found().await;
    let bytes = site_bundle::fetch(&clients.peers, &directory).await?;
    Ok((DarkSite::assemble(directory, signed, &keys, &recovery, &bytes)?, clients))
}

/// The directory on this client's disk, and as the server signed it.
fn directory(home: &Home, membership: &Membership) -> Result<(Directory, Vec<u8>)> {
    let signed = home.directory()?.context(
        "this client has no directory of its site yet: it must have run once while the server was there",
    )?;
    let directory = Directory::open(&membership.signing_key, &signed)
        .context("read the directory on this client's disk")?;
    ensure!(
        directory.site == membership.site,
        "the directory on this client's disk is of another site"
    );
    Ok((directory, signed))
}

impl Clients {
    /// The members that the directory names, where it says that they are or where they answer on the LAN.
    fn of(home: &Home, directory: &Directory) -> Result<Self> {
        let names = Arc::new(NameTable::default());
        let mut members = Vec::new();
        for member in directory.members.iter().filter(|member| directory.is_member(&member.agent)) {
            if let Some(addr) = member.addr {
                names.set(Member::Agent(member.agent), addr);
            }
            members.push(member.agent);
        }
        let looking = lan::look(directory.site, Arc::clone(&names), members.clone());
        let papers = home.papers()?;
        let client = tls::client(&Trust::Ca(papers.ca_pem.clone()), Some(&papers), names)?;
        let limits = RateLimits::of(home)?;
        Ok(Self { peers: PeerClient::new(client).paced(limits.download()), members, looking })
    }

    /// The bundle without its boot files: from where the directory says that the members are or, when that takes long,
    /// from where they were found.
    async fn catalog(&self, directory: &Directory) -> Result<Vec<u8>> {
        let there = site_bundle::fetch_catalog(&self.peers, directory);
        let found = async {
            self.looking.found().await;
            tokio::time::sleep(AT_LEAST).await;
            site_bundle::fetch_catalog(&self.peers, directory).await
        };
        Ok(select_ok([there.boxed(), found.boxed()]).await?.0)
    }
}

/// The site's keys.
///
/// # Errors
/// When `recovery` is not the recovery key of this site.
fn keys(directory: &Directory, recovery: &Identity) -> Result<SiteKeys> {
    ensure!(
        !directory.authority.is_empty(),
        "the directory carries no keys of the site: let this client run once while the server is there"
    );
    SiteKeys::open(recovery, &directory.authority)
}

impl DarkSite {
    /// Opens the bundle.
    ///
    /// # Errors
    /// When something is not signed by this site, or not wrapped to its recovery key.
    fn assemble(
        directory: Directory,
        signed_directory: Vec<u8>,
        keys: &SiteKeys,
        recovery: &Identity,
        bytes: &[u8],
    ) -> Result<Self> {
        let verifier = keys.signer()?.verifying_key();
        let (catalog, boot_files) = catalog(verifier, bytes, Keyring::All(recovery))?;
        Ok(Self {
            authority: keys.authority()?,
            fingerprint: keys.fingerprint()?,
            directory,
            signed_directory: signed_directory.into(),
            catalog,
            boot_files,
        })
    }
}

/// What opens content keys.
#[derive(Clone, Copy)]
enum Keyring<'a> {
    /// Of everything.
    All(&'a Identity),
    /// Of the image versions that it names.
    Granted(&'a Grant),
}

impl Keyring<'_> {
    /// None when it is not to be opened.
    fn of_version(self, public: &Public) -> Result<Option<SealKey>> {
        match self {
            Self::All(recovery) => recovery.unwrap_key(&public.wrapped_key).map(Some),
            Self::Granted(grant) => {
                let granted = grant.versions.iter().find(|it| it.version == public.version);
                Ok(granted.map(|granted| SealKey(granted.content_key.0)))
            }
        }
    }

    /// None when it is not to be opened.
    fn of_volume(self, root: &Root) -> Result<Option<SealKey>> {
        match self {
            Self::All(recovery) => recovery.unwrap_key(&root.wrapped_key).map(Some),
            Self::Granted(_) => Ok(None),
        }
    }
}

/// Reads a bundle.
fn catalog(
    signing_key: VerifyingKey,
    bytes: &[u8],
    keyring: Keyring<'_>,
) -> Result<(Catalog, Vec<BootFile>)> {
    let items = bundle::decode(bytes).context("read the bundle")?;
    let (mut boot_files, mut stripe_maps) = (Vec::new(), Vec::new());
    let (mut images, mut volumes) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::BootFile { name, content } => {
                boot_files.push(BootFile { name: name.to_owned(), content: content.to_vec() });
            }
            Item::StripeMap(signed) => {
                let map = StripeMap::open(&signing_key, signed).context("open a stripe map")?;
                stripe_maps.push(Map { map, signed: Bytes::copy_from_slice(signed) });
            }
            Item::Manifest(signed) => images.extend(image(&signing_key, signed, keyring)?),
            Item::VolumeRoot(signed) => volumes.extend(volume(&signing_key, signed, keyring)?),
        }
    }
    images.sort_by(|a, b| (&a.name, a.number).cmp(&(&b.name, b.number)));
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((Catalog { signing_key, images, volumes, stripe_maps }, boot_files))
}

impl Catalog {
    /// The volume of this name.
    ///
    /// # Errors
    /// When there is no such volume; with those that there are.
    pub fn volume(&self, name: &str) -> Result<&Volume> {
        let names: Vec<&str> = self.volumes.iter().map(|volume| volume.name.as_str()).collect();
        let found = self.volumes.iter().find(|volume| volume.name == name);
        found.with_context(|| match names.as_slice() {
            [] => "the clients hold no volume: those that are on the server only are not with them"
                .to_owned(),
            _ => format!("the clients hold no volume {name}; they hold: {}", names.join(", ")),
        })
    }

    /// The image of this name, its newest version unless it names one; without a name the only one.
    ///
    /// # Errors
    /// When there is no such image, or the choice is not clear; with the images that there are.
    pub fn choose(&self, wanted: Option<&str>) -> Result<&Image> {
        let mut names: Vec<&str> = self.images.iter().map(|image| image.name.as_str()).collect();
        names.dedup();
        let listed = names.join(", ");
        let (name, number) = match (wanted, names.as_slice()) {
            (_, []) => bail!("the clients hold no image"),
            (None, [only]) => (*only, None),
            (None, _) => bail!("name the image to install with --image: {listed}"),
            (Some(wanted), _) => split_name(wanted).context("an image is NAME or NAME@N")?,
        };
        let fits = |image: &&Image| {
            image.name == name && number.is_none_or(|number| image.number == number)
        };
        let asked = wanted.unwrap_or(name);
        let newest = self.images.iter().rfind(fits);
        newest.with_context(|| format!("there is no image {asked}; there are: {listed}"))
    }
}

fn volume(
    signing_key: &VerifyingKey,
    signed: &[u8],
    keyring: Keyring<'_>,
) -> Result<Option<Volume>> {
    let root = Root::open(signing_key, signed).context("open the root of a volume")?;
    let Some(content_key) = keyring.of_volume(&root)? else { return Ok(None) };
    let secret = root.open_secret(&content_key).context("open the root of a volume")?;
    Ok(Some(Volume {
        name: secret.name,
        id: root.volume,
        size: ByteCount(secret.blocks * BLOCK_BYTES as u64),
        durability: secret.durability,
        root: Bytes::copy_from_slice(signed),
        content_key,
    }))
}

fn image(signing_key: &VerifyingKey, signed: &[u8], keyring: Keyring<'_>) -> Result<Option<Image>> {
    let public = Public::open(signing_key, signed).context("open a manifest")?;
    let Some(content_key) = keyring.of_version(&public)? else { return Ok(None) };
    let secret = public.open_secret(&content_key).context("open a manifest")?;
    let mut seen = std::collections::HashSet::new();
    let once = public.segments().filter(|entry| seen.insert(entry.id));
    let stored = once.map(|entry| u64::from(entry.bytes)).sum();
    Ok(Some(Image {
        name: secret.name,
        number: secret.number,
        version: public.version,
        size: public.size,
        stored: ByteCount(stored),
        manifest: Bytes::copy_from_slice(signed),
        content_key,
    }))
}

#[cfg(test)]
pub(crate) mod tests {
    use cairn_array::{tls::new_authority, wrap::wrap_key};
    use cairn_core::{
        id::{ImageId, SiteId},
        manifest::{Draft, Secret},
        units::{ByteCount, Generation},
    };

    use super::*;

    /// A site with these images, whose manifests nobody looks at.
    pub(crate) fn site(images: &[(&str, u32)]) -> DarkSite {
        let (ca_pem, ca_key_pem) = new_authority().unwrap();
        let keys = SiteKeys { ca_pem, ca_key_pem, signing_seed: [7; 32] };
        DarkSite {
            authority: keys.authority().unwrap(),
            fingerprint: keys.fingerprint().unwrap(),
            directory: directory(Vec::new()),
            signed_directory: Bytes::new(),
            catalog: Catalog {
                signing_key: keys.signer().unwrap().verifying_key(),
                images: images.iter().map(|(name, number)| listed(name, *number)).collect(),
                volumes: Vec::new(),
                stripe_maps: Vec::new(),
            },
            boot_files: Vec::new(),
        }
    }

    fn directory(authority: Vec<u8>) -> Directory {
        Directory {
            site: SiteId([1; 16]),
            number: Generation(1),
            authority,
            bundle: Vec::new(),
            server: None,
            members: Vec::new(),
            revoked: Vec::new(),
        }
    }

    /// What a server would sign for an image, wrapped to this key.
    fn manifest(keys: &SiteKeys, recovery: &Identity, name: &str, number: u32) -> Vec<u8> {
        let content_key = SealKey([9; 32]);
        let draft = Draft {
            image: ImageId([1; 16]),
            version: VersionId([u8::try_from(number).unwrap(); 16]),
            size: ByteCount(4096),
            data: Vec::new(),
            map: Vec::new(),
            wrapped_key: wrap_key(&content_key, &[recovery.recipient()]).unwrap(),
            secret: Secret {
                name: name.to_owned(),
                number,
                registered_at: 0,
                data_blocks: 0,
                data_keys: Vec::new(),
                map_keys: Vec::new(),
            },
        };
        draft.seal(&content_key, &keys.signer().unwrap())
    }

    #[test]
    fn what_the_site_signed_is_opened_with_its_recovery_key_and_nothing_else_is() {
        let (ca_pem, ca_key_pem) = new_authority().unwrap();
        let site_keys = SiteKeys { ca_pem, ca_key_pem, signing_seed: [7; 32] };
        let recovery = Identity::generate();
        let sealed = site_keys.seal(&recovery.recipient()).unwrap();
        let opened = keys(&directory(sealed.clone()), &recovery).unwrap();
        let error = keys(&directory(sealed.clone()), &Identity::generate()).unwrap_err();
        assert!(format!("{error:#}").contains("not the recovery key"), "{error:#}");
        assert!(keys(&directory(Vec::new()), &recovery).is_err());

        let signed = manifest(&site_keys, &recovery, "lab", 2);
        let file = Item::BootFile { name: "vmlinuz", content: b"kernel" };
        let bytes = bundle::encode(&[file, Item::Manifest(&signed)]);
        let assemble = |keys: &SiteKeys, recovery: &Identity, bytes: &[u8]| {
            DarkSite::assemble(directory(sealed.clone()), Vec::new(), keys, recovery, bytes)
        };
        let site = assemble(&opened, &recovery, &bytes).unwrap();
        let image = site.catalog.choose(None).unwrap();
        assert_eq!((image.full_name(), image.content_key.0), ("lab@2".to_owned(), [9; 32]));
        assert_eq!(site.boot_files[0].name, "vmlinuz");
        // Of another site, or wrapped to another key.
        let foreign = SiteKeys { signing_seed: [8; 32], ..site_keys };
        assert!(assemble(&foreign, &recovery, &bytes).is_err());
        assert!(assemble(&opened, &Identity::generate(), &bytes).is_err());
        assert!(assemble(&opened, &recovery, &bytes[1..]).is_err());
    }

    fn listed(name: &str, number: u32) -> Image {
        Image {
            name: name.to_owned(),
            number,
            version: VersionId([1; 16]),
            size: ByteCount(1 << 30),
            stored: ByteCount(1 << 20),
            manifest: Bytes::new(),
            content_key: SealKey([0; 32]),
        }
    }

    fn chosen(images: &[(&str, u32)], wanted: Option<&str>) -> Result<String> {
        site(images).catalog.choose(wanted).map(Image::full_name)
    }

    #[test]
    fn the_only_image_needs_no_name_and_the_newest_version_is_taken() {
        let one = [("lab", 1), ("lab", 2), ("lab", 10)];
        assert_eq!(chosen(&one, None).unwrap(), "lab@10");
        assert_eq!(chosen(&one, Some("lab@2")).unwrap(), "lab@2");
        let two = [("lab", 1), ("office", 3)];
        let error = chosen(&two, None).unwrap_err().to_string();
        assert!(error.contains("--image") && error.contains("lab, office"), "{error}");
        assert_eq!(chosen(&two, Some("office")).unwrap(), "office@3");
        let error = chosen(&two, Some("office@4")).unwrap_err().to_string();
        assert!(error.contains("office@4") && error.contains("lab, office"), "{error}");
        assert!(chosen(&[], None).is_err());
        assert!(chosen(&one, Some("lab@x")).is_err());
    }
}
