//! Program for packets that arrive: of XDP, or at tcx.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::Result;
use aya::{
    pin::PinError,
    programs::{ProgramError, SchedClassifier, Xdp},
};

/// Loaded program for packets that arrive.
pub(super) enum Ingress<'a> {
    /// Program of XDP.
    Xdp(&'a mut Xdp),
    /// Program at tcx.
    Tcx(&'a mut SchedClassifier),
}

impl Ingress<'_> {
    /// Loads the program into the kernel.
    pub(super) fn load(&mut self) -> Result<(), ProgramError> {
        match self {
            Self::Xdp(program) => program.load(),
            Self::Tcx(program) => program.load(),
        }
    }

    /// Pins the program at `path`.
    pub(super) fn pin(&mut self, path: &Path) -> Result<(), PinError> {
        match self {
            Self::Xdp(program) => program.pin(path),
            Self::Tcx(program) => program.pin(path),
        }
    }

    /// Returns a descriptor of the program.
    pub(super) fn fd(&self) -> Result<OwnedFd> {
        let fd = match self {
            Self::Xdp(program) => program.fd(),
            Self::Tcx(program) => program.fd(),
        };
        Ok(fd?.as_fd().try_clone_to_owned()?)
    }
}
