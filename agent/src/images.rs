//! `cairn-agent images`: what this site can install.

use anyhow::{Context as _, Result};
use cairn_array::wire::ImageLine;
use comfy_table::{CellAlignment, Table, presets};

use crate::{
    dark::{self, Opener},
    home::Home,
    leave::member_link,
    link::Patience,
    size,
};

/// The images of the site, from the server.
///
/// # Errors
/// When this agent has not joined or the server cannot be asked.
pub async fn images(home: &Home) -> Result<Vec<ImageLine>> {
    let membership = home.membership()?;
    let link = member_link(home, &membership)?;
    link.get("/agent/v1/images", Patience::Prompt).await.context("ask the server for its images")
}

/// The images that the clients hold, as far as `opener` opens them.
///
/// # Errors
/// When it is not this site's or not good any more, or too few clients answer.
pub async fn held(home: &Home, opener: &Opener) -> Result<Vec<ImageLine>> {
    let (catalog, _) = dark::open(home, opener).await?;
    Ok(catalog.images.iter().map(dark::Image::line).collect())
}

/// Images for people.
#[must_use]
pub fn render(images: &[ImageLine]) -> String {
    if images.is_empty() {
        return "no images; `cairn-server image add FILE --name NAME` registers one\n".to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "VERSION", "SIZE", "STORED"]);
    for image in images {
        table.add_row([
            image.name.clone(),
            image.number.to_string(),
            size::show(image.size),
            size::show(image.stored),
        ]);
    }
    for column in 1..4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use cairn_core::units::ByteCount;

    use super::*;

    #[test]
    fn images_are_listed() {
        let image = ImageLine {
            name: "debian".to_owned(),
            number: 2,
            size: ByteCount(1 << 30),
            stored: ByteCount(300 << 20),
        };
        let text = render(&[image]);
        let words: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, ["debian", "2", "1.0", "GiB", "300", "MiB"]);
        assert!(render(&[]).contains("cairn-server image add"));
    }
}
