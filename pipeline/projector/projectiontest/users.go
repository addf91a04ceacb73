// Package projectiontest holds events, a fold and an HTTP client for tests of
// projections.
package projectiontest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
	"millrace/schemas"
)

func shopSchema(t testing.TB, name string) *codec.Schema {
	t.Helper()
	text, err := schemas.FS.ReadFile(name + ".avsc")
	if err != nil {
		t.Fatal(err)
	}
	s, err := codec.ParseSchema(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The types of the tests' events, by index, which is also their schema id.
const (
	UserCreated = iota
	UserUpdated
	UserDeleted
	OrderCreated
)

// UserTypes returns the types of the tests' events.
func UserTypes(t testing.TB) []*codec.Schema {
	return []*codec.Schema{shopSchema(t, "UserCreated"), shopSchema(t, "UserUpdated"), shopSchema(t, "UserDeleted"), shopSchema(t, "OrderCreated")}
}

// UserFold returns the fold of users in topology.yaml. active is the status of new users:
// another one makes another fold.
func UserFold(t testing.TB, name, active string) *fold.Fold {
	t.Helper()
	src := func(text string) expr.Source { return expr.Source{Text: text} }
	f, faults := fold.Compile(fold.Spec{
		Name: name, Types: UserTypes(t), Key: src("data.id"), State: shopSchema(t, "User"),
		On: []fold.On{
			{Type: UserCreated, Set: []fold.Set{
				{Field: src("id"), Value: src("data.id")}, {Field: src("email"), Value: src("data.email")},
				{Field: src("name"), Value: src("data.name")}, {Field: src("status"), Value: src("'" + active + "'")},
			}},
			{Type: UserUpdated, Set: []fold.Set{
				{Field: src("name"), Value: src("data.name != null ? data.name : state.name")},
			}},
			{Type: UserDeleted, Set: []fold.Set{{Field: src("status"), Value: src("'deleted'")}}, Delete: true},
		},
	})
	for _, fault := range faults {
		t.Error(fault)
	}
	if f == nil {
		t.FailNow()
	}
	return f
}

// UserEvent returns a framed event of a user.
func UserEvent(t testing.TB, types []*codec.Schema, typ, n int, id string) []byte {
	t.Helper()
	data := map[string]any{"id": id}
	switch typ {
	case UserCreated:
		data["email"], data["name"] = fmt.Sprint(id, "@example.com"), fmt.Sprint("name ", n)
	case UserUpdated:
		data["name"] = fmt.Sprint("name ", n)
	case OrderCreated:
		data["user_id"], data["items"], data["total_amount"] = id, []any{}, json.Number("1")
	}
	body, err := codec.EncodeJSON(types[typ], map[string]any{
		"id": fmt.Sprintf("00000000-0000-4000-8000-%012d", n), "timestamp": json.Number(fmt.Sprint(1767225600_000000 + n)), "data": data,
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(codec.AppendFrame(nil, typ), body...)
}

// Registry returns a registry of the types, each with its index as id.
func Registry(t testing.TB, types []*codec.Schema) *codec.Registry {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var id int
		if _, err := fmt.Sscanf(r.URL.Path, "/schemas/ids/%d", &id); err != nil || id >= len(types) {
			http.NotFound(w, r)
			return
		}
		if err := json.NewEncoder(w).Encode(map[string]string{"schema": types[id].String()}); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{srv.URL}})
	if err != nil {
		t.Fatal(err)
	}
	return registry
}

// The topics of the tests.
const (
	EventsTopic    = "shop.events"
	SnapshotsTopic = "shop.user.snapshots"
	LateTopic      = "shop.late"
)
