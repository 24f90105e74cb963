//! Places of fields in the kernel's structures, from its type information (BTF, Documentation/bpf/btf.rst).
//!
//! The information is read where it lies: some 100,000 types in one buffer. A parser that makes an object of each, as
//! btfparse does, takes tens of megabytes. tfo locks its memory, and so could not give them back.

use std::{fs, ops::Range};

use anyhow::{Context as _, Result, bail, ensure};
use tfo_common::listener::OFFSET_BITS;

/// Type information of the kernel itself, without its modules.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// First two bytes of type information, in the byte order of the machine that it is for.
const MAGIC: u16 = 0xeb9f;
/// Length of `struct btf_type` and of `struct btf_member`, in bytes.
const ENTRY: usize = 12;
/// Number of bits in a byte.
const BYTE: u32 = 8;

/// Kinds of types (`BTF_KIND_*` in linux/btf.h) that lead to a structure's fields.
mod kind {
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const TYPE_TAG: u32 = 18;
}

/// Structures of the running kernel.
pub struct Structures {
    bytes: Vec<u8>,
    /// Offset in `bytes` of each type, by its number less one. Number 0 is `void`.
    types: Vec<u32>,
    /// Part of `bytes` with the names, each of which ends with a zero.
    names: Range<usize>,
}

/// Field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    /// Offset from the beginning of the structure, in bits.
    offset: u32,
    /// Length of a bit field, in bits; 0 for any other field.
    bits: u32,
    /// Number of its type.
    of: u32,
}

impl Structures {
    /// Reads the kernel's type information. It takes some milliseconds.
    pub fn read() -> Result<Self> {
        let bytes = fs::read(BTF).with_context(|| format!("cannot read {BTF} (CONFIG_DEBUG_INFO_BTF=y)"))?;
        Self::parse(bytes).with_context(|| format!("cannot follow {BTF}"))
    }

    fn parse(bytes: Vec<u8>) -> Result<Self> {
        let word = |at| word(&bytes, at).map(|word| word as usize);
        let magic = bytes.first_chunk().copied().map(u16::from_ne_bytes);
        ensure!(magic == Some(MAGIC), "it does not begin like type information");
        // As `struct btf_header`: after the magic, version and flags.
        let (header, [types_at, types_len, names_at, names_len]) =
            (word(4)?, [word(8)?, word(12)?, word(16)?, word(20)?]);
        let names = header + names_at..header + names_at + names_len;
        ensure!(bytes.get(names.clone()).is_some(), "it ends too early");
        let (mut at, end) = (header + types_at, header + types_at + types_len);
        let mut types = Vec::with_capacity(types_len / ENTRY);
        while at < end {
            types.push(u32::try_from(at)?);
            let info = word(at + 4)? as u32;
            at += ENTRY + rest(info)?;
        }
        Ok(Self { bytes, types, names })
    }

    /// Returns the place of a field, as [`Places`](tfo_common::listener::Places) has it. `path` leads to the field from
    /// the structure `of`, with a dot between two names. A colon and a number behind it select one bit of a byte, or of a
    /// field of several bits, counted from the lowest.
    pub fn place(&self, of: &str, path: &str) -> Result<u32> {
        let (path, bit) = match path.split_once(':') {
            Some((path, bit)) => (path, Some(bit.parse().context("no number of a bit")?)),
            None => (path, None),
        };
        let mut at = Member { offset: 0, bits: 0, of: self.structure(of)? };
        for name in path.split('.') {
            let inner =
                self.member(at.of, name)?.with_context(|| format!("this kernel has no {of}.{path}"))?;
            at = Member { offset: at.offset.saturating_add(inner.offset), ..inner };
        }
        let bit = match (at.bits, bit) {
            (0, None) => return place(at.offset / BYTE, 0),
            (0, Some(bit)) if bit < BYTE => return place(at.offset / BYTE, 1_u8 << bit),
            (1, None) => at.offset,
            (bits, Some(bit)) if bit < bits => at.offset + bit_of(bit, bits),
            (bits, _) => bail!("{of}.{path} has {bits} bits, and not one"),
        };
        place(bit / BYTE, mask(bit % BYTE))
    }

    /// Whether any type, member or enumerator is called `name`.
    pub fn has_name(&self, name: &str) -> bool {
        let names = self.bytes.get(self.names.clone()).unwrap_or_default();
        names.split(|byte| *byte == 0).any(|found| found == name.as_bytes())
    }

    /// Returns the number of the structure called `name`.
    fn structure(&self, name: &str) -> Result<u32> {
        for (number, at) in (1..).zip(&self.types) {
            let at = *at as usize;
            if kind_of(word(&self.bytes, at + 4)?) == kind::STRUCT && self.is_named(at, name)? {
                return Ok(number);
            }
        }
        bail!("this kernel has no struct {name}")
    }

    /// Finds the field `name` of the structure or union with the number `of`, also within fields without a name.
    fn member(&self, of: u32, name: &str) -> Result<Option<Member>> {
        let Some(at) = self.fields(of)? else { return Ok(None) };
        let info = word(&self.bytes, at + 4)?;
        for index in 0..length(info) {
            let at = at + ENTRY + index * ENTRY;
            let (of, offset) = (word(&self.bytes, at + 4)?, word(&self.bytes, at + 8)?);
            // With this flag, the offset has the length of a bit field in its highest byte.
            let (offset, bits) =
                if info >> 31 != 0 { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            if self.is_named(at, name)? {
                return Ok(Some(Member { offset, bits, of }));
            }
            if self.is_named(at, "")?
                && let Some(inner) = self.member(of, name)?
            {
                return Ok(Some(Member { offset: offset.saturating_add(inner.offset), ..inner }));
            }
        }
        Ok(None)
    }

    /// Returns the offset of the structure or union that the type `of` stands for; `None` for any other type.
    fn fields(&self, of: u32) -> Result<Option<usize>> {
        let mut of = of;
        // A chain of names and qualifiers is short, unless it runs in a circle.
        for _ in 0..32 {
            let Some(index) = (of as usize).checked_sub(1) else { return Ok(None) };
            let at = *self.types.get(index).context("a type has no number")? as usize;
            match kind_of(word(&self.bytes, at + 4)?) {
                kind::STRUCT | kind::UNION => return Ok(Some(at)),
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    of = word(&self.bytes, at + 8)?;
                }
                _ => return Ok(None),
            }
        }
        bail!("types refer to each other in a circle")
    }

    /// Whether the type or member at `at` is called `name`.
    fn is_named(&self, at: usize, name: &str) -> Result<bool> {
        let start = self.names.start + word(&self.bytes, at)? as usize;
        let found = self.bytes.get(start..self.names.end).context("a name is not there")?;
        Ok(found.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)))
    }
}

/// Reads four bytes in the machine's byte order.
fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).context("it ends too early")?;
    Ok(u32::from_ne_bytes(*bytes))
}

/// Returns the kind in `info` of `struct btf_type`.
const fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Returns the number of entries in `info` of `struct btf_type`.
const fn length(info: u32) -> usize {
    (info & 0xffff) as usize
}

/// Returns the number of bytes behind `struct btf_type`, by its kind (`BTF_KIND_*`).
fn rest(info: u32) -> Result<usize> {
    Ok(match kind_of(info) {
        // Pointers, forward declarations, names, qualifiers, functions, floats and tags of types.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables and tags of declarations.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections of data and enums of 64 bits.
        4 | 5 | 15 | 19 => length(info) * 12,
        // Enums and prototypes of functions.
        6 | 13 => length(info) * 8,
        kind => bail!("it has types of the kind {kind}, which is not known"),
    })
}

fn place(offset: u32, mask: u8) -> Result<u32> {
    ensure!(offset < 1 << OFFSET_BITS, "a structure of {offset} bytes");
    Ok(offset | u32::from(mask) << OFFSET_BITS)
}

/// Returns how far bit `bit` of a field of `bits` bits, counted from the lowest, is from that end of the field from which
/// BTF counts.
fn bit_of(bit: u32, bits: u32) -> u32 {
    if cfg!(target_endian = "big") { bits - 1 - bit } else { bit }
}

/// Returns the mask of a bit in its byte. BTF counts bits from that end of a byte from which the compiler fills it.
fn mask(bit: u32) -> u8 {
    if cfg!(target_endian = "big") { 0x80 >> bit } else { 1 << bit }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[u8] = b"\0outer\0a\0b\0flag\0number\0bits\0";

    /// Returns `struct outer { number a; union { number b; struct { bits: 3, flag: 1 } } }`, where `number` is a name
    /// for an integer of four bytes.
    fn example() -> Vec<u8> {
        let name =
            |text: &str| NAMES.windows(text.len()).position(|found| found == text.as_bytes()).unwrap() as u32;
        let info = |kind: u32, length: u32, has_bits: bool| kind << 24 | length | u32::from(has_bits) << 31;
        let types = [
            // 1: int
            &[0, info(1, 0, false), 4, 32][..],
            // 2: number
            &[name("number"), info(kind::TYPEDEF, 0, false), 1],
            // 3: outer
            &[name("outer"), info(kind::STRUCT, 2, false), 8, name("a\0"), 2, 0, 0, 5, 32],
            // 4: struct of bits
            &[0, info(kind::STRUCT, 2, true), 4, name("bits"), 1, 3 << 24, name("flag"), 1, 1 << 24 | 3],
            // 5: const union
            &[0, info(kind::CONST, 0, false), 6],
            // 6: union
            &[0, info(kind::UNION, 2, true), 4, name("b\0"), 2, 0, 0, 4, 0],
        ]
        .concat();
        let header = [24, 0, types.len() as u32 * 4, types.len() as u32 * 4, NAMES.len() as u32];
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        bytes.extend(header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()));
        bytes.extend(NAMES);
        bytes
    }

    #[test]
    fn fields_are_found_by_their_path() {
        let structures = Structures::parse(example()).unwrap();
        assert_eq!(structures.place("outer", "a").unwrap(), 0);
        assert_eq!(structures.place("outer", "b").unwrap(), 4);
        assert_eq!(structures.place("outer", "flag").unwrap(), 4 | u32::from(mask(3)) << OFFSET_BITS);
        assert_eq!(
            structures.place("outer", "bits:1").unwrap(),
            4 | u32::from(mask(bit_of(1, 3))) << OFFSET_BITS
        );
        assert_eq!(structures.place("outer", "a:2").unwrap(), 4 << OFFSET_BITS);
        let wrong = [
            ("outer", "c"),
            ("outer", "a.b"),
            ("outer", "bits"),
            ("outer", "bits:3"),
            ("outer", "bits:x"),
            ("outer", "a:8"),
            ("oute", "a"),
            ("number", "a"),
        ];
        for (of, path) in wrong {
            assert!(structures.place(of, path).is_err(), "{of}.{path}");
        }
    }

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
        // Wherever it is cut or one byte is changed, there is an answer or an error, and no panic.
        let whole = example();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            for bytes in [whole[..at].to_vec(), changed] {
                if let Ok(structures) = Structures::parse(bytes) {
                    drop(structures.place("outer", "flag"));
                }
            }
        }
    }
}
