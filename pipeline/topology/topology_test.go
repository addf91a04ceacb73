package topology_test

import (
	"context"
	"os"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/topology"
	"millrace/schemas"
)

// clock is the clock of now() in tests.
func clock() time.Time { return time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC) }

func shipped(t *testing.T) *topology.Topology {
	t.Helper()
	text, err := os.ReadFile("../../topology.yaml")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: text}, topology.Options{Schemas: schemas.FS, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// encode returns an event in Avro.
func encode(t *testing.T, s *codec.Schema, event map[string]any) []byte {
	t.Helper()
	body, err := s.Avro().Encode(event)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func orderCreated() map[string]any {
	return map[string]any{
		"id": "0b0e2f8e-57cf-4a4f-8a4b-6a4b7a1c2d3e", "type": "OrderCreated", "timestamp": clock().UnixMicro(), "version": 1,
		"metadata": map[string]any{"source": "web"},
		"data":     map[string]any{"id": "o1", "user_id": "u1", "items": []any{}, "total_amount": 12.5},
	}
}

// run processes an event in a new chain and returns the resulting body.
func run(t *testing.T, p *topology.Pipeline, typ int, body []byte) (out []byte) {
	t.Helper()
	e := pipeline.Event{Record: &pipeline.Record{}, Type: typ, OldType: -1}
	if err := p.Layouts[typ].Walk(body, &e.View); err != nil {
		t.Error(err)
		return nil
	}
	err := p.Chain().Process(context.Background(), &e, func(e *pipeline.Event) error {
		out = e.Append(nil)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return out
}

func TestShippedTopologyRuns(t *testing.T) {
	plan := shipped(t)
	p := plan.Pipelines[0]
	typ := -1
	for i, s := range p.Types {
		if s.Name() == "shop.OrderCreated" {
			typ = i
		}
	}
	out := run(t, p, typ, encode(t, p.Types[typ], orderCreated()))
	var got map[string]any
	if _, err := p.Output[typ].Avro().Decode(out, &got); err != nil {
		t.Fatal(err)
	}
	metadata := got["metadata"].(map[string]any)
	if metadata["processed_at"] != "2026-01-31T12:00:00Z" || metadata["pipeline"] != "enrich" || metadata["source"] != "web" {
		t.Errorf("got the metadata %v", metadata)
	}
	for i, s := range p.Types {
		if want := s.Name() != "shop.UserDeleted"; p.Emits[i] != want {
			t.Errorf("Emits of %s is %v, want %v", s.Name(), p.Emits[i], want)
		}
	}
}
