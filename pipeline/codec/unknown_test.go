package codec

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"millrace/pipeline"
)

func TestUnknownSchemasAreNamedUntilTheyAreKnownOrTenMinutesOld(t *testing.T) {
	known := false
	r, clock := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if known {
			reply(w, 200, sr.Schema{Schema: orderSchema})
			return
		}
		reply(w, 404, map[string]any{"error_code": 40403})
	})
	if err := r.Missing().Err(); err != nil {
		t.Fatal(err)
	}
	for id := range 9 {
		if _, err := r.Schema(t.Context(), SchemaRef{ID: 9 - id}); pipeline.ReasonOf(err) != pipeline.ReasonUnknownSchema {
			t.Fatal(err)
		}
	}
	if m := r.Missing(); len(m.Unknown) != 9 || m.Unknown[0].ID != 1 || m.Waiting != nil {
		t.Errorf("missing: %+v", m)
	}
	if err := r.Missing().Err(); err == nil || !strings.Contains(err.Error(), "has no schema id 1, id 2, id 3, id 4, id 5 and 4 more; records with it are rejected as unknown_schema") {
		t.Error(err)
	}

	clock.time = clock.time.Add(unknownShown - 10*time.Second)
	known = true
	if _, err := r.Schema(t.Context(), SchemaRef{ID: 1}); err != nil {
		t.Fatal(err)
	}
	if m := r.Missing(); len(m.Unknown) != 8 || m.Unknown[0].ID != 2 {
		t.Errorf("a schema that is registered now is missing: %+v", m.Unknown)
	}
	clock.time = clock.time.Add(10 * time.Second)
	if err := r.Missing().Err(); err != nil {
		t.Errorf("after ten minutes without such records: %v", err)
	}
}

func TestFewOfManyUnknownSchemasAreRemembered(t *testing.T) {
	r, clock := serve(t, func(http.ResponseWriter, *http.Request) {})
	r.mu.Lock()
	for id := range 2 * unknownMost {
		r.noteUnknown(SchemaRef{ID: id})
	}
	clock.time = clock.time.Add(unknownShown)
	r.noteUnknown(SchemaRef{ID: -7})
	n := len(r.unknown)
	r.mu.Unlock()
	if m := r.Missing(); n != 1 || len(m.Unknown) != 1 || m.Unknown[0].ID != -7 {
		t.Errorf("%d are remembered after the first ones were forgotten: %v", n, m.Unknown)
	}
}

func TestARegistryThatDoesNotAnswerIsNamedWithTheSchema(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	r, clock := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		reply(w, 500, map[string]any{"error_code": 50001})
	})
	done := make(chan error, 1)
	go func() {
		_, err := r.Schema(t.Context(), SchemaRef{ID: 7})
		done <- err
	}()
	<-arrived
	_ = clock.sleep(t.Context(), 2*time.Second)
	if m, err := r.Missing(), r.Missing().Err(); fmt.Sprint(m.Waiting) != "[id 7]" || err == nil || !strings.HasSuffix(err.Error(), "to answer for schema id 7") {
		t.Errorf("missing %+v: %v", m, err)
	}
	close(release)
	if err := <-done; err == nil || errors.Is(err, ErrNotRegistered) {
		t.Error(err)
	}
	if err := r.Missing().Err(); err != nil {
		t.Errorf("the request has ended: %v", err)
	}
}
