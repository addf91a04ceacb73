package chain

import (
	"context"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/topology"
)

// tombstone handles a record without a value. No stage sees it: a tombstone has no
// fields, so nothing can filter, mask or route it. A pipeline whose stages choose the key
// or the topic by the value has topology.TombstoneDeadLetter. read is the record without
// the headers of a redrive.
func (h *handler) tombstone(ctx context.Context, in, read *pipeline.Record, out pipeline.Emitter) error {
	var err error
	switch h.tombstones {
	case topology.TombstoneDelete, topology.TombstonePass:
		if err = h.input.keys.Check(ctx, read); err == nil {
			err = h.output.tombstone(read)
		}
	case topology.TombstoneIgnore:
	default:
		_, _, err = codec.Unframe(in) // says what is wrong
	}
	if h.tap != nil {
		h.tap.tombstone(in, len(h.output.records) > 0, err)
	}
	switch {
	case err != nil && pipeline.ClassOf(err) != pipeline.ClassReject:
		return err
	case err != nil:
		return h.reject(ctx, in, deadletter.StageDecode, err, out)
	case len(h.output.records) == 0:
		h.batch.Filtered++
		h.batch.Tombstones.Ignored++
	default:
		h.batch.Out++
		h.batch.Tombstones.Passed++
		out.Emit(&h.output.records[0])
	}
	return nil
}

var errNoKey = pipeline.Reject(pipeline.ReasonTombstone, "the record has neither a key nor a value, so nothing says what is deleted")

// delete adds the tombstone for an event that a stage made a deletion.
func (o *output) delete(e *pipeline.Event, t *target, key []byte) error {
	if len(key) == 0 {
		return errNoKey
	}
	headers := o.carrier.Carried(e.Headers, e.NewKey != nil)
	if o.headers != nil {
		headers = o.headers.ForTombstone(headers, t.topic)
	}
	return o.add(e, t, key, nil, headers)
}

// tombstone adds the tombstone for a tombstone of the input.
func (o *output) tombstone(in *pipeline.Record) error {
	if len(in.Key) == 0 {
		return errNoKey
	}
	headers := o.carrier.Carried(in.Headers, false)
	if o.headers != nil {
		headers = o.headers.ForTombstone(headers, o.to.topic)
	}
	// A tombstone has no event time, so its time may be that of its writing.
	at := o.to.gate.Time(in.Time)
	if err := o.to.gate.Check(len(in.Key)+pipeline.HeadersSize(headers), in.Key, at); err != nil {
		return err
	}
	o.records = append(o.records, pipeline.Record{Topic: o.to.topic, Partition: pipeline.KeyPartition, Key: in.Key, Headers: headers, Time: at})
	return nil
}
