//! Lock-free rings between one producer and the engine.
