//! Enums whose variants index a counter and carry the name that users see.

/// Declares an enum of consecutive `u8` discriminants with `ALL`, `COUNT`, `name`, `index` and `from_index`.
///
/// Indices are part of the maps' layout. A new variant goes to the end. A new `Class` or `Family` needs another
/// `LAYOUT_VERSION` than that of the last release, since their number is a dimension of arrays.
macro_rules! named {
    ($(#[$meta:meta])* $vis:vis enum $enum:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        $vis enum $enum { $($(#[$doc])* $variant,)+ }

        impl $enum {
            /// Variants, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Number of variants.
            pub const COUNT: usize = Self::ALL.len();

            /// Returns the name in tables, JSON and metrics.
            #[inline(always)]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Calls `then` with this value. Each variant gets a copy of `then` in which the value is a constant.
            #[inline(always)]
            pub fn constant<T>(self, then: impl Fn(Self) -> T) -> T {
                match self { $(Self::$variant => then(Self::$variant),)+ }
            }

            /// Returns the variant with this index, or `None` for an index without one.
            #[inline(always)]
            pub const fn from_index(index: u32) -> Option<Self> {
                $(if index == Self::$variant as u32 { return Some(Self::$variant) })+
                None
            }

            /// Returns the place in an array of [`Self::COUNT`] counters.
            #[inline(always)]
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl core::fmt::Display for $enum {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
