//! The requirements on every backend: one suite for any device.
//!
//! The environment variable `INTERLOCK_TEST_DEVICES` names the devices, such as `cpu,cuda:0,cuda:1`. Default: all devices that need no hardware but
//! the CPU. A named device that does not open fails every test. Checks that a device does not support are printed (`--nocapture` shows them).
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
