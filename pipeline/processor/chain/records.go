package chain

import (
	"millrace/pipeline"
)

// Records collects what a handler emits.
type Records struct{ All []pipeline.Record }

func (r *Records) Emit(rec *pipeline.Record) { r.All = append(r.All, *rec) }
