//! What every backend must do: one suite for any device.
//!
//! The devices are those that the environment variable `INTERLOCK_TEST_DEVICES` names, such as `cpu,cuda:0,cuda:1`; without it all that need no
//! hardware but the CPU. A named device that does not open fails every test. What a device cannot be asked is printed (`--nocapture` shows it).
//!
//! The golden cases on the same devices are in the package `interlock-models`, in its test `replay`.
#![allow(clippy::print_stdout)] // what was skipped

mod determinism;
mod devices;
mod layers;
mod memory;
mod readings;
mod transfers;

#[path = "../support/given.rs"]
mod support;
