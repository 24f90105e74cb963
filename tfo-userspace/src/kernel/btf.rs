//! Places of fields in the kernel's structures, from its type information (BTF).

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use btfparse::{Error, ErrorKind, Offset, Readable, TypeInformation};
use tfo_common::listener::OFFSET_BITS;

/// Type information of the kernel itself, without its modules.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Number of bits in a byte.
const BYTE: u32 = 8;

/// Structures of the running kernel.
pub struct Structures(TypeInformation);

impl Structures {
    /// Reads the kernel's type information. It takes some 100 ms.
    pub fn read() -> Result<Self> {
        let bytes = fs::read(BTF).with_context(|| format!("cannot read {BTF} (CONFIG_DEBUG_INFO_BTF=y)"))?;
        Self::parse(bytes).with_context(|| format!("cannot follow {BTF}"))
    }

    fn parse(bytes: Vec<u8>) -> Result<Self> {
        Ok(Self(TypeInformation::new(&Bytes(bytes)).map_err(|error| anyhow::anyhow!("{error:?}"))?))
    }

    /// Returns the place of a field, as [`Places`](tfo_common::listener::Places) has it. `path` leads to the field from
    /// the structure `of`, with a dot between two names.
    pub fn place(&self, of: &str, path: &str) -> Result<u32> {
        let id = self.0.id_of(of).with_context(|| format!("this kernel has no struct {of}"))?;
        let field = self.0.offset_of(id, path);
        match field.map_err(|_| anyhow::anyhow!("this kernel has no {of}.{path}"))?.1 {
            Offset::ByteOffset(offset) => place(offset, 0),
            Offset::BitOffsetAndSize(bit, 1) => place(bit / BYTE, mask(bit % BYTE)),
            Offset::BitOffsetAndSize(_, bits) => bail!("{of}.{path} has {bits} bits, and not one"),
        }
    }
}

fn place(offset: u32, mask: u8) -> Result<u32> {
    ensure!(offset < 1 << OFFSET_BITS, "a structure of {offset} bytes");
    Ok(offset | u32::from(mask) << OFFSET_BITS)
}

/// Returns the mask of a bit in its byte. BTF counts bits from that end of a byte from which the compiler fills it.
fn mask(bit: u32) -> u8 {
    if cfg!(target_endian = "big") { 0x80 >> bit } else { 1 << bit }
}

/// Type information in memory.
struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..));
        let found = rest.and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or_else(|| Error::new(ErrorKind::IOError, "it ends too early"))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_an_offset_and_a_bit() {
        assert_eq!(place(0x123, 0).unwrap(), 0x123);
        assert_eq!(place(0x123, 0x40).unwrap(), 0x4000_0123);
        assert!(place(1 << OFFSET_BITS, 0).is_err());
    }

    #[test]
    fn broken_type_information_is_an_error() {
        for bytes in [Vec::new(), vec![0; 24], vec![0x9f, 0xeb, 1, 0, 24]] {
            assert!(Structures::parse(bytes).is_err());
        }
    }
}
