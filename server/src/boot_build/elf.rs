//! The little of ELF (64-bit, little-endian) that building the payload needs: whether a program asks for a
//! dynamic linker, and what a kernel module says about itself.
//!
//! Every offset is checked: a damaged file is an error, never a panic.

/// The file is not an ELF file of this machine, or an offset in it points outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed 64-bit ELF file")]
pub(super) struct BadElf;

const PROGRAM_INTERPRETER: u32 = 3;

/// Whether the kernel would start a dynamic linker for this program (it has a `PT_INTERP` header).
pub(super) fn wants_interpreter(file: &[u8]) -> Result<bool, BadElf> {
    check_magic(file)?;
    let table = offset_at(file, 32)?;
    let (size, count) = (u16_at(file, 54)?, u16_at(file, 56)?);
    for index in 0..usize::from(count) {
        let header = at(table, index, usize::from(size))?;
        if u32_at(file, header)? == PROGRAM_INTERPRETER {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The `key=value` pairs in a kernel module's `.modinfo` section, in their order.
pub(super) fn module_info(file: &[u8]) -> Result<Vec<(&str, &str)>, BadElf> {
    let section = section(file, ".modinfo")?.ok_or(BadElf)?;
    Ok(section
        .split(|byte| *byte == 0)
        .filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='))
        .collect())
}

fn section<'a>(file: &'a [u8], wanted: &str) -> Result<Option<&'a [u8]>, BadElf> {
    check_magic(file)?;
    let table = offset_at(file, 40)?;
    let size = usize::from(u16_at(file, 58)?);
    let (count, names) = (u16_at(file, 60)?, u16_at(file, 62)?);
    let contents = |index: usize| -> Result<&'a [u8], BadElf> {
        let header = at(table, index, size)?;
        let start = offset_at(file, header + 24)?;
        let length = offset_at(file, header + 32)?;
        file.get(start..start.checked_add(length).ok_or(BadElf)?).ok_or(BadElf)
    };
    let names = contents(usize::from(names))?;
    for index in 0..usize::from(count) {
        let name = usize::try_from(u32_at(file, at(table, index, size)?)?).map_err(|_| BadElf)?;
        let name = names.get(name..).ok_or(BadElf)?;
        if name.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)) {
            return contents(index).map(Some);
        }
    }
    Ok(None)
}

fn check_magic(file: &[u8]) -> Result<(), BadElf> {
    // Magic, then class 2 (64-bit) and data 1 (little-endian).
    if file.starts_with(b"\x7fELF\x02\x01") { Ok(()) } else { Err(BadElf) }
}

fn at(table: usize, index: usize, size: usize) -> Result<usize, BadElf> {
    index
        .checked_mul(size)
        .and_then(|offset| offset.checked_add(table))
        // Fields of a header are added to this: keep the sums far from overflow.
        .filter(|offset| *offset < usize::MAX / 2)
        .ok_or(BadElf)
}

fn field<const N: usize>(file: &[u8], offset: usize) -> Result<[u8; N], BadElf> {
    file.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or(BadElf)
}

fn u16_at(file: &[u8], offset: usize) -> Result<u16, BadElf> {
    field(file, offset).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], offset: usize) -> Result<u32, BadElf> {
    field(file, offset).map(u32::from_le_bytes)
}

fn offset_at(file: &[u8], offset: usize) -> Result<usize, BadElf> {
    usize::try_from(u64::from_le_bytes(field(file, offset)?)).map_err(|_| BadElf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_dynamic_and_busybox_is_static() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(wants_interpreter(&this), Ok(true));
        let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
        assert_eq!(wants_interpreter(&busybox), Ok(false));
    }

    #[test]
    fn damage_is_an_error() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(wants_interpreter(b"#!/bin/sh"), Err(BadElf));
        assert_eq!(wants_interpreter(&this[..70]), Err(BadElf));
        let mut wild = this[..4096].to_vec();
        wild[40..48].fill(0xff);
        assert_eq!(module_info(&wild), Err(BadElf));
        assert_eq!(module_info(&this), Err(BadElf), "no .modinfo");
    }
}
