//! Who may use which volume by NBD. Its snapshots are `VOLUME@SNAPSHOT`, read-only.

use std::sync::Arc;

use cairn_array::{
    nbd::{Export, Exports, Visitor},
    tls::Member,
};

use super::snapshots;
use crate::app::App;

/// The volumes of a server. On this machine anybody may use them; from elsewhere who has a volume's own papers.
#[derive(Debug)]
pub struct Served(pub App);

impl Exports for Served {
    fn names(&self, visitor: Visitor) -> Vec<String> {
        let entries = self.0.volumes.entries();
        let may = entries.iter().filter(|(_, entry)| match visitor {
            Visitor::Local => true,
            Visitor::Remote(member) => member == Some(Member::Volume(entry.id)),
        });
        let mut names = Vec::new();
        for (name, entry) in may {
            names.push(name.clone());
            names.extend(entry.snapshots.keys().map(|snapshot| format!("{name}@{snapshot}")));
        }
        names
    }

    fn find(&self, name: &str, visitor: Visitor) -> Option<Arc<dyn Export>> {
        let may = self.names(visitor).iter().any(|known| known == name);
        if !may {
            return None;
        }
        match name.split_once('@') {
            None => Some(self.0.volumes.get(name).ok()?),
            Some((volume, snapshot)) => match snapshots::open(&self.0, volume, snapshot) {
                Ok(open) => Some(open),
                Err(error) => {
                    tracing::error!(name, error = %error, "open a snapshot for a client");
                    None
                }
            },
        }
    }
}
