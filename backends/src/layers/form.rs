//! The two forms of a layer: kernels for `f32` on the CPU, and candle operations for every device.

use std::cell::Cell;

use candle_core::Device;

thread_local! {
    /// Whether layers that this thread builds or runs on the CPU compute with candle's operations too.
    static CANDLE_ON_CPU: Cell<bool> = const { Cell::new(false) };
}

/// The form in which a layer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The kernels for the CPU.
    Kernels,
    /// candle's operations.
    CandleOperations,
}

impl Form {
    /// Returns the form of layers on `device`.
    pub(super) fn on(device: &Device) -> Self {
        if device.is_cpu() && !CANDLE_ON_CPU.get() { Self::Kernels } else { Self::CandleOperations }
    }
}

/// Runs `work` with candle's operations on the CPU too. This holds for this thread only.
#[cfg(feature = "cpu")]
pub(crate) fn with_candle_on_cpu<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            CANDLE_ON_CPU.set(self.0);
        }
    }
    let _restore = Restore(CANDLE_ON_CPU.replace(true));
    work()
}

/// Implements `Differentiable` for a layer by delegating to its field `form`, which was chosen when the layer was built.
macro_rules! differentiable_by_form {
    ($layer:ty) => {
        impl interlock::Differentiable for $layer {
            fn forward(
                &self,
                x: &interlock::Activation,
                pass: &interlock::Pass,
            ) -> interlock::Result<(interlock::Activation, interlock::Saved)> {
                self.form.forward(x, pass)
            }

            fn backward(
                &self,
                saved: &interlock::Saved,
                output_gradient: &interlock::Activation,
                wants: interlock::Wants,
            ) -> interlock::Result<interlock::Gradients> {
                self.form.backward(saved, output_gradient, wants)
            }

            fn has_parameters(&self) -> bool {
                self.form.has_parameters()
            }

            fn backward_input(
                &self,
                saved: &interlock::Saved,
                output_gradient: &interlock::Activation,
            ) -> interlock::Result<(interlock::Activation, interlock::Pending)> {
                self.form.backward_input(saved, output_gradient)
            }

            fn backward_parameters(
                &self,
                saved: &interlock::Saved,
                pending: interlock::Pending,
            ) -> interlock::Result<interlock::ParameterGradients> {
                self.form.backward_parameters(saved, pending)
            }

            fn last_backward(
                &self,
                saved: interlock::Saved,
                output_gradient: interlock::Activation,
                wants: interlock::Wants,
            ) -> interlock::Result<interlock::Gradients> {
                self.form.last_backward(saved, output_gradient, wants)
            }

            fn last_backward_parameters(
                &self,
                saved: interlock::Saved,
                pending: interlock::Pending,
            ) -> interlock::Result<interlock::ParameterGradients> {
                self.form.last_backward_parameters(saved, pending)
            }
        }
    };
}
pub(super) use differentiable_by_form;
