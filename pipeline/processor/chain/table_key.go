package chain

import (
	"context"
	"fmt"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/expr"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/rows"
	"millrace/pipeline/topology"
)

// rowKeys determines the keys of a table's rows: the text form of the record's key, or
// what the topic's expression key returns. The goroutine of table.run owns it.
type rowKeys struct {
	records *keyformat.Reader
	text    []byte // the text form of the current record's key

	// Of an expression; nil without one.
	key    *expr.BareType
	layout *codec.Layout
	view   pipeline.View
	scope  expr.Scope
	row    []byte // the key of the current row
	// rowOf has the key of the row that each record key last gave, because a tombstone has
	// no fields.
	rowOf *rows.Map
}

func newRowKeys(topic *topology.Topic, schema *codec.Schema, schemas event.Schemas) (*rowKeys, error) {
	k := &rowKeys{records: keyformat.NewReader(topic.KeyFormat, topic.Name, schemas)}
	if topic.Bare == nil || topic.Bare.Key.Text == "" || topic.Snapshots != nil {
		return k, nil
	}
	only := expr.Bare{Key: topic.Bare.Key, RecordKey: topic.Bare.RecordKey}
	compiled, faults := only.Compile(schema, topic.Name)
	if len(faults) > 0 {
		return nil, fmt.Errorf("the key of %s: %s", topic.Name, faults[0].Msg) // impossible: the topology was checked
	}
	layout, err := codec.NewLayout(schema, compiled.Paths())
	if err == nil {
		err = compiled.Bind(layout)
	}
	k.key, k.layout, k.rowOf = &compiled, layout, rows.New()
	return k, err
}

// of returns the key of the row that the record is about before the record, nil if there
// is none, and the key of its own row. body is nil if the record has no row. The keys are
// valid until the next call. A record whose key cannot be read is rejected.
func (k *rowKeys) of(ctx context.Context, r *pipeline.Record, body []byte) (before, now []byte, err error) {
	if k.text, err = k.records.AppendText(ctx, k.text[:0], r); err != nil {
		return nil, nil, err
	}
	if k.key == nil {
		return k.text, k.text, nil
	}
	before, _ = k.rowOf.Get(k.text)
	if body == nil {
		k.rowOf.Delete(k.text)
		return before, nil, nil
	}
	k.view.Record, k.view.KeyBody = r, k.records.Body()
	if err = k.layout.Walk(body, &k.view); err == nil {
		k.scope.Reset(time.Time{}, &k.view)
		k.row, _, err = k.key.AppendKey(k.row[:0], &k.scope)
	}
	if err != nil {
		k.rowOf.Delete(k.text)
		return before, nil, err
	}
	before = append([]byte(nil), before...)
	k.rowOf.Set(k.text, k.row)
	return before, k.row, nil
}
