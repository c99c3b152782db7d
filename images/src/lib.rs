//! The modules as OCI images, as the mesh pulls them: built without a container engine, described, pushed, pulled, signed.
//!
//! - [`layout`] makes of a module its two images, the same bytes wherever and whenever, and keeps them as an OCI layout.
//! - [`sbom`] lists what is in a module.
//! - [`registry`] pushes images and pulls them; a manifest comes last, so that nothing half-written is ever seen.
//! - [`mesh`] takes a module out of an image by the rules of the mesh's fetcher.
//! - [`signature`] signs an image as cosign does, and checks that.

pub mod layout;
pub mod mesh;
pub mod registry;
pub mod sbom;
pub mod signature;

pub use layout::{Blob, Form, Image, Module};
pub use registry::Registry;
pub use signature::{Signer, Verifier};
