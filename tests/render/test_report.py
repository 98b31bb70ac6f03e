"""The Backward Lens report: every part is there for every kind of model, true to the lens, and safe."""



