//! Who may use which volume by NBD.

use std::sync::Arc;

use cairn_array::{
    nbd::{Export, Exports, Visitor},
    tls::Member,
};

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
        may.map(|(name, _)| name.clone()).collect()
    }

    fn find(&self, name: &str, visitor: Visitor) -> Option<Arc<dyn Export>> {
        let may = self.names(visitor).iter().any(|known| known == name);
        let open = may.then(|| self.0.volumes.get(name).ok())??;
        Some(open)
    }
}
