//! Bit for bit: is the disk what the image said?

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use anyhow::{Context as _, Result};

const PIECE: usize = 1 << 20;

/// The first place where a disk is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Position of the first byte that differs.
    Byte(u64),
    /// The disk ends here, before the image does.
    End(u64),
}

/// Compares `disk` with `image` over the whole length of `image`; a longer disk is fine.
///
/// # Errors
/// One of them cannot be read.
pub fn first_difference(image: &Path, disk: &Path) -> Result<Option<Difference>> {
    let open = |path: &Path| {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok::<_, anyhow::Error>(BufReader::with_capacity(PIECE, file))
    };
    let (mut image, mut disk) = (open(image)?, open(disk)?);
    let (mut wanted, mut found) = (vec![0; PIECE], vec![0; PIECE]);
    let mut position = 0_u64;
    loop {
        let length = fill(&mut image, &mut wanted).context("read the image")?;
        let present = fill(&mut disk, found.get_mut(..length).unwrap_or_default())
            .context("read the disk")?;
        let pairs = wanted.iter().zip(&found).take(present);
        if let Some(at) = pairs.into_iter().position(|(wanted, found)| wanted != found) {
            return Ok(Some(Difference::Byte(position + u64::try_from(at)?)));
        }
        if present < length {
            return Ok(Some(Difference::End(position + u64::try_from(present)?)));
        }
        if length == 0 {
            return Ok(None);
        }
        position += u64::try_from(length)?;
    }
}

/// Reads until `buffer` is full or the file ends.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_first_wrong_byte_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (image, disk) = (dir.path().join("image"), dir.path().join("disk"));
        let bytes: Vec<u8> =
            (0..3 * PIECE + 17).map(|at| u8::try_from(at % 251).unwrap()).collect();
        fs::write(&image, &bytes).unwrap();
        let mut longer = bytes.clone();
        longer.extend_from_slice(&[9; 4096]);
        fs::write(&disk, &longer).unwrap();
        assert_eq!(first_difference(&image, &disk).unwrap(), None);
        longer[2 * PIECE + 5] ^= 1;
        fs::write(&disk, &longer).unwrap();
        let at = Difference::Byte(2 * u64::try_from(PIECE).unwrap() + 5);
        assert_eq!(first_difference(&image, &disk).unwrap(), Some(at));
        fs::write(&disk, &bytes[..PIECE + 3]).unwrap();
        let end = Difference::End(u64::try_from(PIECE).unwrap() + 3);
        assert_eq!(first_difference(&image, &disk).unwrap(), Some(end));
    }
}
