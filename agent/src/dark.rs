//! What the stand-in knows of its site, opened and checked.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use cairn_array::{
    authority::SiteKeys,
    tls::{Authority, Fingerprint},
    wire::split_name,
    wrap::Identity,
};
use cairn_core::{
    bundle::{self, Item},
    directory::Directory,
    id::VersionId,
    manifest::Public,
    seal::SealKey,
    sign::VerifyingKey,
    stripe_map::StripeMap,
};

/// An image version that can be installed.
pub(super) struct Image {
    pub(super) name: String,
    pub(super) number: u32,
    pub(super) version: VersionId,
    /// Signed.
    pub(super) manifest: Bytes,
    pub(super) content_key: SealKey,
}

/// A file that machines boot by.
pub(super) struct BootFile {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The site as far as one image needs it.
pub(super) struct Site {
    pub(super) authority: Authority,
    pub(super) fingerprint: Fingerprint,
    pub(super) signing_key: VerifyingKey,
    pub(super) directory: Directory,
    /// As the server signed it.
    pub(super) signed_directory: Bytes,
    pub(super) image: Image,
    /// Signed; those of all images, since a version may use segments of another image.
    pub(super) stripe_maps: Vec<Bytes>,
    pub(super) boot_files: Vec<BootFile>,
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("image", &self.image_name()).finish_non_exhaustive()
    }
}

/// The site's keys.
///
/// # Errors
/// When `recovery` is not the recovery key of this site.
pub(super) fn keys(directory: &Directory, recovery: &Identity) -> Result<SiteKeys> {
    ensure!(
        !directory.authority.is_empty(),
        "the directory carries no keys of the site: let this client run once while the server is there"
    );
    SiteKeys::open(recovery, &directory.authority)
}

impl Site {
    /// Opens the bundle and chooses the image: `wanted`, or the only one.
    ///
    /// # Errors
    /// When something is not signed by this site, or the choice is not clear.
    pub(super) fn assemble(
        directory: Directory,
        signed_directory: Vec<u8>,
        keys: &SiteKeys,
        recovery: &Identity,
        bytes: &[u8],
        wanted: Option<&str>,
    ) -> Result<Self> {
        let signing_key = keys.signer()?.verifying_key();
        let items = bundle::decode(bytes).context("read the bundle")?;
        let (mut boot_files, mut stripe_maps, mut images) = (Vec::new(), Vec::new(), Vec::new());
        for item in items {
            match item {
                Item::BootFile { name, content } => {
                    boot_files.push(BootFile { name: name.to_owned(), content: content.to_vec() });
                }
                Item::StripeMap(signed) => {
                    StripeMap::open(&signing_key, signed).context("open a stripe map")?;
                    stripe_maps.push(Bytes::copy_from_slice(signed));
                }
                Item::Manifest(signed) => images.push(open(&signing_key, recovery, signed)?),
            }
        }
        let image = choose(images, wanted)?;
        Ok(Self {
            authority: keys.authority()?,
            fingerprint: keys.fingerprint()?,
            signing_key,
            directory,
            signed_directory: signed_directory.into(),
            image,
            stripe_maps,
            boot_files,
        })
    }

    /// `NAME@N`
    pub(super) fn image_name(&self) -> String {
        format!("{}@{}", self.image.name, self.image.number)
    }
}

fn open(signing_key: &VerifyingKey, recovery: &Identity, signed: &[u8]) -> Result<Image> {
    let public = Public::open(signing_key, signed).context("open a manifest")?;
    let content_key = recovery.unwrap_key(&public.wrapped_key)?;
    let secret = public.open_secret(&content_key).context("open a manifest")?;
    Ok(Image {
        name: secret.name,
        number: secret.number,
        version: public.version,
        manifest: Bytes::copy_from_slice(signed),
        content_key,
    })
}

/// The image of this name, its newest version unless it names one; without a name the only one.
fn choose(mut images: Vec<Image>, wanted: Option<&str>) -> Result<Image> {
    images.sort_by(|a, b| (&a.name, a.number).cmp(&(&b.name, b.number)));
    let mut names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    names.dedup();
    let listed = names.join(", ");
    let (name, number) = match (wanted, names.as_slice()) {
        (_, []) => bail!("the clients hold no image"),
        (None, [only]) => ((*only).to_owned(), None),
        (None, _) => bail!("name the image to install with --image: {listed}"),
        (Some(wanted), _) => {
            let (name, number) = split_name(wanted).context("an image is NAME or NAME@N")?;
            (name.to_owned(), number)
        }
    };
    let mut fitting = images
        .into_iter()
        .filter(|image| image.name == name && number.is_none_or(|number| image.number == number));
    let asked = wanted.unwrap_or(&name);
    fitting.next_back().with_context(|| format!("there is no image {asked}; there are: {listed}"))
}

#[cfg(test)]
pub(super) mod tests {
    use cairn_array::{tls::new_authority, wrap::wrap_key};
    use cairn_core::{
        id::{ImageId, SiteId},
        manifest::{Draft, Secret},
        units::{ByteCount, Generation},
    };

    use super::*;

    /// A site with one image, whose manifest nobody looks at.
    pub(in super::super) fn site(name: &str, number: u32) -> Site {
        let (ca_pem, ca_key_pem) = new_authority().unwrap();
        let keys = SiteKeys { ca_pem, ca_key_pem, signing_seed: [7; 32] };
        Site {
            authority: keys.authority().unwrap(),
            fingerprint: keys.fingerprint().unwrap(),
            signing_key: keys.signer().unwrap().verifying_key(),
            directory: directory(Vec::new()),
            signed_directory: Bytes::new(),
            image: image(name, number),
            stripe_maps: Vec::new(),
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
            Site::assemble(directory(sealed.clone()), Vec::new(), keys, recovery, bytes, None)
        };
        let site = assemble(&opened, &recovery, &bytes).unwrap();
        assert_eq!(site.image_name(), "lab@2");
        assert_eq!(
            (site.boot_files[0].name.as_str(), site.image.content_key.0),
            ("vmlinuz", [9; 32])
        );
        // Of another site, or wrapped to another key.
        let foreign = SiteKeys { signing_seed: [8; 32], ..site_keys };
        assert!(assemble(&foreign, &recovery, &bytes).is_err());
        assert!(assemble(&opened, &Identity::generate(), &bytes).is_err());
        assert!(assemble(&opened, &recovery, &bytes[1..]).is_err());
    }

    fn image(name: &str, number: u32) -> Image {
        Image {
            name: name.to_owned(),
            number,
            version: VersionId([1; 16]),
            manifest: Bytes::new(),
            content_key: SealKey([0; 32]),
        }
    }

    fn chosen(images: &[(&str, u32)], wanted: Option<&str>) -> Result<String> {
        let images = images.iter().map(|(name, number)| image(name, *number)).collect();
        choose(images, wanted).map(|image| format!("{}@{}", image.name, image.number))
    }

    #[test]
    fn the_only_image_needs_no_name_and_the_newest_version_is_taken() {
        let one = [("lab", 2), ("lab", 10), ("lab", 1)];
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
