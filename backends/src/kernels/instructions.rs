//! Which vector instructions the kernels use.

use std::{fmt, sync::OnceLock};

/// The vector instructions that the kernels use: the best that the processor has, unless `INTERLOCK_CPU_INSTRUCTIONS` names lesser ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// What every processor has.
    Portable,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
}

/// The environment variable that may name lesser instructions than the processor has.
const VARIABLE: &str = "INTERLOCK_CPU_INSTRUCTIONS";

impl Instructions {
    /// What the kernels of this process use.
    pub fn in_use() -> Self {
        static IN_USE: OnceLock<Instructions> = OnceLock::new();
        *IN_USE.get_or_init(|| Self::at_most(std::env::var(VARIABLE).ok().as_deref(), Self::of_the_processor()))
    }

    /// The best of this processor.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn of_the_processor() -> Self {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        match avx2 {
            true if is_x86_feature_detected!("avx512f") => Self::Avx512,
            true => Self::Avx2,
            false => Self::Portable,
        }
    }

    /// The best of this processor.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn of_the_processor() -> Self {
        Self::Portable
    }

    /// What was asked for, as far as the processor goes; names that are none ask for nothing.
    fn at_most(asked: Option<&str>, best: Self) -> Self {
        let named = [Self::Portable, Self::Avx2, Self::Avx512].into_iter().find(|i| Some(i.name()) == asked);
        named.map_or(best, |asked| asked.min(best))
    }

    /// Its name: `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `dispatch! { unsafe fn name(arguments) -> result = body }`: `name` calls the generic `body::<L>` as compiled for
/// [`Instructions::in_use`]. What `body` demands of its caller, `name` demands.
macro_rules! dispatch {
    ($(#[$attribute:meta])* $visible:vis unsafe fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:ident) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visible unsafe fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512($($argument: $type),*) $(-> $result)? {
                // SAFETY: as demanded of the caller; the lanes' instructions are enabled here.
                unsafe { $body::<$crate::kernels::lanes::Avx512>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($argument: $type),*) $(-> $result)? {
                // SAFETY: as demanded of the caller; the lanes' instructions are enabled here.
                unsafe { $body::<$crate::kernels::lanes::Avx2>($($argument),*) }
            }
            // SAFETY: as demanded of the caller; instructions are in use only where the processor has them.
            unsafe {
                match $crate::kernels::Instructions::in_use() {
                    #[cfg(target_arch = "x86_64")]
                    $crate::kernels::Instructions::Avx512 => avx512($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::kernels::Instructions::Avx2 => avx2($($argument),*),
                    _ => $body::<$crate::kernels::lanes::Portable>($($argument),*),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_processor_has_nor_than_asked_for() {
        use Instructions::{Avx2, Avx512, Portable};
        for (asked, best, used) in [
            (None, Avx512, Avx512),
            (Some("avx2"), Avx512, Avx2),
            (Some("avx512"), Avx2, Avx2),
            (Some("portable"), Avx2, Portable),
            (Some("sse"), Avx2, Avx2),
        ] {
            assert_eq!(Instructions::at_most(asked, best), used, "{asked:?} of {best}");
        }
        assert!(Instructions::in_use() <= Instructions::of_the_processor());
    }
}
