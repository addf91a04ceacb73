package receipt

// Exported for tests in package receipt_test.

func (r *Reader) Lag() (records int64, known bool) { return r.lag() }

func (r *Reader) Of(id, pipeline string) (Receipt, bool) { return r.of(id, pipeline) }
