package programs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/sandbox"
)

// Two workers share the partitions of a broker.
func TestOfTwoProjectorsAnyWaitsAndTellsForBoth(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "schemas"), 0o700), os.Mkdir(filepath.Join(dir, "a"), 0o700), os.Mkdir(filepath.Join(dir, "b"), 0o700)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "topology.yaml")
	harness.Write(t, file, []byte(`
name: t
topics:
  clicks: {partitions: 2, types: [Click], envelope: none, id: "id + ''"}
projections:
  count: {from: clicks, key: id, state: Count, on: {Click: {set: {n: n}}}, snapshots: counts}
`))
	harness.Write(t, filepath.Join(dir, "schemas", "Click.avsc"), harness.ClickSchemas["Click.avsc"].Data)
	harness.Write(t, filepath.Join(dir, "schemas", "Count.avsc"), []byte(`{"type": "record", "name": "Count", "fields": [{"name": "n", "type": "long", "default": 0}]}`))
	box, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = box.Close() })
	var addresses []string
	for _, name := range []string{"a", "b"} {
		address, stop, err := startProjector(t.Context(), file, filepath.Join(dir, name), box, "--instance", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
		addresses = append(addresses, "http://"+address)
	}
	// Until each has one.
	type worker struct{ Offsets map[int32]int64 }
	shared := func() bool {
		for _, at := range addresses {
			var has []worker
			if err := harness.GetJSON(t.Context(), at+"/internal/v1/versions", &has); err != nil || len(has) != 1 || len(has[0].Offsets) != 1 {
				return false
			}
		}
		return true
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); !shared(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("the partitions are never shared out")
		}
	}

	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{box.RegistryURL()}})
	if err != nil {
		t.Fatal(err)
	}
	schema, err := codec.ParseSchema(string(harness.ClickSchemas["Click.avsc"].Data))
	if err != nil {
		t.Fatal(err)
	}
	id, err := registry.Register(t.Context(), codec.Subject("clicks", schema), schema)
	if err != nil {
		t.Fatal(err)
	}
	w, err := kafka.NewWriter(kafka.Config{Brokers: box.Brokers()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const n = 12
	for i := range int64(n) {
		name := fmt.Sprint("e-", i)
		at := addresses[i%2]
		var page struct {
			Items []struct{ ID string }
			After string `json:"after_event"`
		}
		answer := make(chan error, 1)
		go func() {
			answer <- harness.GetJSON(t.Context(), at+"/v1/projections/count?wait=30s&after_event="+name, &page)
		}()
		value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, id), name), i)
		w.Write(t.Context(), &pipeline.Record{Topic: "clicks", Partition: pipeline.KeyPartition, Key: []byte(name), Value: value, Time: time.Now()}, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-answer; err != nil || page.After != "applied" || !slices.ContainsFunc(page.Items, func(it struct{ ID string }) bool { return it.ID == name }) {
			t.Errorf("%s: %v, %+v", name, err, page)
		}
	}
	for _, at := range addresses {
		var all struct {
			Projections []struct {
				Partitions []struct{ Offset int64 }
				Absent     map[int32]string
			}
		}
		if err := harness.GetJSON(t.Context(), at+"/v1/projections", &all); err != nil || len(all.Projections) != 1 || len(all.Projections[0].Partitions) != 2 || len(all.Projections[0].Absent) > 0 {
			t.Fatalf("%v %v", err, all)
		}
		var folded int64
		for _, p := range all.Projections[0].Partitions {
			folded += p.Offset
		}
		if folded < n {
			t.Errorf("%d are folded, as %s says: %v", folded, at, all)
		}
	}
}
