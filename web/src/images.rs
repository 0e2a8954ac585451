//! Images: what there is, where it lives, and registering one.

use askama::Template;

use crate::text::{Ago, Bytes, Percent, Rate, Span, counted};

/// The page.
#[derive(Debug, Template)]
#[template(path = "images.html")]
pub struct ImagesPage<'a> {
    pub live: &'a Images,
    /// Files on the server that can become images.
    pub files: Vec<Offered>,
    /// The server fetches images from hosts that were named.
    pub fetches: bool,
    /// Of the version that was asked for.
    pub signature: Option<Signature>,
}

/// Who vouches for a version.
#[derive(Clone, Debug)]
pub struct Signature {
    /// `classroom, version 3`.
    pub version: String,
    /// Why nobody does.
    pub problem: Option<String>,
    /// SHA-256 of the manifest, and the site's key; hex.
    pub manifest: String,
    pub key: String,
    pub segments: u64,
}

/// A file in the server's folder of images.
#[derive(Clone, Debug)]
pub struct Offered {
    pub file: String,
    pub size: Bytes,
    /// The name that it is offered under: letters, digits, dots, dashes and underscores of its own.
    pub name: String,
    /// `raw`, `raw.zst` or `qcow2`, as far as its own name says.
    pub format: Option<String>,
}

impl Offered {
    fn is(&self, format: &str) -> bool {
        self.format.as_deref() == Some(format)
    }
}

/// Its live part, `/parts/images`.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "images_live.html")]
pub struct Images {
    pub registrations: Vec<Registration>,
    /// The page of images that is shown, and how many pages there are.
    pub images: Vec<Image>,
    pub page: usize,
    pub pages: usize,
    /// Clients that may hold segments.
    pub clients: u64,
}

/// An image whose bytes are coming in. All but `stored` counts bytes of the disk, not of the file that is sent.
#[derive(Clone, Debug)]
pub struct Registration {
    pub image: String,
    pub number: u32,
    /// Looked at so far.
    pub read: Bytes,
    /// The size of the disk, when the sender declared it.
    pub size: Option<Bytes>,
    pub rate: Option<Rate>,
    pub left: Option<Span>,
    /// Of what was read: zero or free, so not stored.
    pub empty: Bytes,
    /// Of what was read: in this image already, here or in another version.
    pub known: Bytes,
    /// Sealed bytes that were stored for the rest.
    pub stored: Bytes,
}

/// An image with its versions, newest first.
#[derive(Clone, Debug)]
pub struct Image {
    pub name: String,
    pub versions: Vec<Version>,
    /// Its name stands for a version that was promoted, not for the newest.
    pub promoted: bool,
    pub lives: Lives,
}

/// One version.
#[derive(Clone, Debug)]
pub struct Version {
    pub number: u32,
    pub size: Bytes,
    /// Sealed bytes of all it needs.
    pub stored: Bytes,
    /// Sealed bytes that came with it.
    pub added: Bytes,
    pub created: Ago,
    /// Machines that run it.
    pub machines: u64,
    /// What the image's name stands for.
    pub current: bool,
}

/// Where an image's segments are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lives {
    /// The server has the data segments.
    pub server: bool,
    /// Clients that hold a part.
    pub clients: u64,
    /// Sealed bytes, parity or copies included, that clients are to hold.
    pub wanted: Bytes,
    /// Of them: what they said they hold.
    pub held: Bytes,
    /// What may be lost, in the planner's words; or why it cannot be spread.
    pub promise: Option<String>,
}

impl Lives {
    /// How far it is spread; nothing when nobody is to hold any of it.
    #[must_use]
    pub fn spread(&self) -> Option<Percent> {
        (self.wanted.0 > 0).then(|| Percent::of(self.held.0, self.wanted.0))
    }

    /// Whether all that clients are to hold is held.
    #[must_use]
    pub fn is_spread(&self) -> bool {
        self.spread() == Some(Percent::ALL)
    }

    /// In few words.
    #[must_use]
    pub fn places(&self) -> String {
        let clients = counted(self.clients, "client", "clients");
        match (self.server, self.clients) {
            (true, 0) => "Server only".to_owned(),
            (true, _) => format!("Server and {clients}"),
            (false, 0) => "Nowhere".to_owned(),
            (false, _) => clients,
        }
    }
}

impl Registration {
    fn percent(&self) -> Option<Percent> {
        self.size.map(|size| Percent::of(self.read.0, size.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            name: "class<room>".into(),
            versions: vec![Version {
                number: 3,
                size: Bytes(20 << 30),
                stored: Bytes(3 << 30),
                added: Bytes(212 << 20),
                created: Ago { at: "2026-11-23T10:00:00Z".into(), seconds: 700 },
                machines: 2,
                current: true,
            }],
            promoted: false,
            lives: Lives {
                server: true,
                clients: 14,
                wanted: Bytes(1000),
                held: Bytes(400),
                promise: Some("The server and any 4 of the 14 clients may be lost.".into()),
            },
        }
    }

    #[test]
    fn a_row_says_what_it_costs_and_where_it_lives() {
        let live = Images { images: vec![image()], clients: 14, ..Images::default() };
        let html = live.render().unwrap().replace('\u{a0}', " ");
        for wanted in [
            "class&#60;room&#62;",
            "20 GiB",
            "212 MiB",
            "Server and 14 clients",
            "40 %",
            "any 4 of the 14 clients may be lost",
            "11 min ago",
            r#"action="/images/class%3Croom%3E/3/remove""#,
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
        assert!(!html.contains("<room>"));
    }

    #[test]
    fn an_empty_house_says_how_to_begin() {
        let html = Images::default().render().unwrap();
        assert!(html.contains("No images yet"), "{html}");
    }

    #[test]
    fn a_registration_shows_how_far_it_is_and_what_it_saves() {
        let registration = Registration {
            image: "office".into(),
            number: 2,
            read: Bytes(5 << 30),
            size: Some(Bytes(10 << 30)),
            rate: Some(Rate(400_000_000)),
            left: Some(Span { seconds: 13 }),
            empty: Bytes(1 << 30),
            known: Bytes(3 << 30),
            stored: Bytes(300 << 20),
        };
        let live = Images { registrations: vec![registration], ..Images::default() };
        let html = live.render().unwrap().replace('\u{a0}', " ");
        for wanted in
            ["office", "50 %", "400 MB/s", "13 s left", "3 GiB", "300 MiB", r#"value="50""#]
        {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
    }

    #[test]
    fn files_on_the_server_are_offered() {
        let file = Offered {
            file: "win \"11\".qcow2".into(),
            size: Bytes(9 << 30),
            name: "win-11".into(),
            format: Some("qcow2".into()),
        };
        let page = ImagesPage {
            live: &Images::default(),
            files: vec![file],
            fetches: false,
            signature: None,
        };
        let html = page.render().unwrap().replace('\u{a0}', " ");
        for wanted in [
            r#"value="win &#34;11&#34;.qcow2""#,
            "9 GiB",
            r#"value="win-11""#,
            r#"<option value="qcow2" selected>"#,
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
        let none = ImagesPage {
            live: &Images::default(),
            files: Vec::new(),
            fetches: false,
            signature: None,
        };
        assert!(!none.render().unwrap().contains("On the server already"));
    }

    #[test]
    fn places_are_named_in_few_words() {
        let lives = |server, clients| {
            Lives { server, clients, ..Lives::default() }.places().replace('\u{a0}', " ")
        };
        assert_eq!(lives(true, 0), "Server only");
        assert_eq!(lives(true, 1), "Server and 1 client");
        assert_eq!(lives(false, 3), "3 clients");
        assert_eq!(Lives::default().spread(), None);
        assert!(Lives { wanted: Bytes(5), held: Bytes(5), ..Lives::default() }.is_spread());
    }
}
