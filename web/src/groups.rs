//! Groups of machines, and which machines a page shows.

use crate::text::{Query, counted};

/// Which machines are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Part of a name, a serial number, a MAC, …
    pub text: String,
    /// Empty: of any group and of none.
    pub group: String,
    /// Only those that do not run what they are to run.
    pub drifted: bool,
    /// From 0 on.
    pub page: usize,
}

/// A group.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: String,
    pub machines: u64,
    /// The image that its machines are to run.
    pub image: Option<String>,
    /// `classroom, version 3`, what that stands for now.
    pub wanted: Option<String>,
    /// How many do not.
    pub drifted: u64,
}

impl Filter {
    /// Whether it leaves nothing out.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.text.is_empty() && self.group.is_empty() && !self.drifted
    }

    /// As an address has it, `?q=…`; empty when there is nothing to say.
    #[must_use]
    pub fn query(&self) -> String {
        self.at(self.page)
    }

    pub(crate) fn at(&self, page: usize) -> String {
        let mut query = Query::default();
        query.add("q", &self.text);
        query.add("group", &self.group);
        query.add("drifted", if self.drifted { "on" } else { "" });
        if page > 0 {
            query.add("page", &page.to_string());
        }
        query.text()
    }

    /// Of one group.
    pub(crate) fn of_group(name: &str) -> String {
        Self { group: name.to_owned(), ..Self::default() }.query()
    }
}

impl Group {
    pub(crate) fn size(&self) -> String {
        counted(self.machines, "machine", "machines")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_an_address() {
        assert_eq!(Filter::default().query(), "");
        assert!(Filter { page: 3, ..Filter::default() }.is_open());
        let filter =
            Filter { text: "pc 1&2".into(), group: "lab-b".into(), drifted: true, page: 2 };
        assert_eq!(filter.query(), "?q=pc%201%262&group=lab-b&drifted=on&page=2");
        assert_eq!(Filter::of_group("lab"), "?group=lab");
    }
}
