//! Uniform structs: the parameters a kernel reads from binding 0.

/// How a uniform struct lies in memory.
#[derive(Debug, PartialEq, Eq)]
pub struct ParamsLayout {
    /// Name, type and offset of each field, in order.
    pub fields: Vec<(&'static str, &'static str, u64)>,
    /// Bytes of the whole.
    pub size: u64,
}

/// Defines a uniform struct that can tell how encase lays it out, so that a test can compare it with its twin
/// in the WGSL.
macro_rules! uniform {
    (struct $name:ident { $($field:ident: $type:ty,)+ }) => {
        #[derive(encase::ShaderType)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)+
        }

        impl $name {
            pub(super) fn layout() -> crate::gpu::ParamsLayout {
                use encase::ShaderType;
                let fields = [$((stringify!($field), stringify!($type))),+].into_iter().enumerate();
                crate::gpu::ParamsLayout {
                    fields: fields.map(|(i, (name, kind))| (name, kind, Self::METADATA.offset(i))).collect(),
                    size: Self::min_size().get(),
                }
            }
        }
    };
}
