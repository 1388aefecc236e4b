//! Uniform structs: the parameters a kernel reads from binding 0.

/// How a uniform struct lies in memory.
#[derive(Debug, PartialEq, Eq)]
pub struct ParamsLayout {
    /// Name, type and offset of each number, in order; those of a struct inside as `outer.inner`.
    pub fields: Vec<(String, &'static str, u64)>,
    /// Bytes of the whole.
    pub size: u64,
}

/// What a uniform struct is made of.
pub(crate) trait UniformField {
    /// Its numbers when it stands at a byte under a name.
    fn numbers(name: &str, offset: u64) -> Vec<(String, &'static str, u64)>;
}

impl UniformField for u32 {
    fn numbers(name: &str, offset: u64) -> Vec<(String, &'static str, u64)> {
        vec![(name.to_owned(), "u32", offset)]
    }
}

impl UniformField for f32 {
    fn numbers(name: &str, offset: u64) -> Vec<(String, &'static str, u64)> {
        vec![(name.to_owned(), "f32", offset)]
    }
}

/// Defines a uniform struct that can tell how encase lays it out, so that a test can compare it with its twin
/// in the WGSL.
macro_rules! uniform {
    ($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty,)+ }) => {
        $(#[$doc])*
        #[derive(encase::ShaderType, Clone, Copy)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)+
        }

        impl crate::gpu::UniformField for $name {
            fn numbers(name: &str, offset: u64) -> Vec<(String, &'static str, u64)> {
                use encase::ShaderType;
                let dot = if name.is_empty() { "" } else { "." };
                let mut places = (0..).map(|i| offset + Self::METADATA.offset(i));
                let mut all = Vec::new();
                $(
                    let (field, place) = (format!("{name}{dot}{}", stringify!($field)), places.next());
                    all.extend(<$type as crate::gpu::UniformField>::numbers(&field, place.unwrap_or_default()));
                )+
                all
            }
        }

        impl $name {
            #[allow(dead_code)]
            pub(super) fn layout() -> crate::gpu::ParamsLayout {
                use encase::ShaderType;
                let fields = <Self as crate::gpu::UniformField>::numbers("", 0);
                crate::gpu::ParamsLayout { fields, size: Self::min_size().get() }
            }
        }
    };
}
