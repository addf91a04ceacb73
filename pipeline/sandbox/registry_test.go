package sandbox_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/sr"

	"millrace/pipeline/codec"
	"millrace/pipeline/sandbox"
)

// start starts a sandbox and stops it at the end of the test.
func start(t *testing.T, cfg sandbox.Config) *sandbox.Sandbox {
	t.Helper()
	box, err := sandbox.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Error(err)
		}
	})
	return box
}

func registryOnly(t *testing.T) *sandbox.Sandbox {
	return start(t, sandbox.Config{NoBroker: true})
}

// request sends a request to the registry and returns the status and the body on one
// line.
func request(t *testing.T, box *sandbox.Sandbox, method, path, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, box.RegistryURL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, answer)
}

// schemaBody returns the body of a request with a schema.
func schemaBody(t *testing.T, schema string) string {
	t.Helper()
	body, err := json.Marshal(map[string]string{"schema": schema})
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// order returns a record schema with these fields.
func order(fields ...string) string {
	return `{"type":"record","name":"Order","namespace":"shop","fields":[` + strings.Join(fields, ",") + `]}`
}

const (
	id            = `{"name":"id","type":"string"}`
	note          = `{"name":"note","type":"string"}`
	noteDefault   = `{"name":"note","type":"string","default":""}`
	amountInt     = `{"name":"amount","type":"int"}`
	amountLong    = `{"name":"amount","type":"long"}`
	amountDefault = `{"name":"amount","type":"int","default":0}`
)

func TestCompatibilityLevels(t *testing.T) {
	// All schemas of a history but the last are registered without checks. The last one
	// is the candidate.
	histories := map[string][]string{
		"the same":                        {order(id), order(id)},
		"field added with default":        {order(id), order(id, noteDefault)},
		"field added without default":     {order(id), order(id, note)},
		"field without default removed":   {order(id, note), order(id)},
		"field with default removed":      {order(id, noteDefault), order(id)},
		"int to long":                     {order(id, amountInt), order(id, amountLong)},
		"long to int":                     {order(id, amountLong), order(id, amountInt)},
		"default gone while field was":    {order(id), order(id, noteDefault), order(id, note)},
		"field back, default in between":  {order(id, note), order(id, noteDefault), order(id)},
		"another record":                  {order(id), `{"type":"record","name":"Parcel","namespace":"shop","fields":[` + id + `]}`},
		"long to int, over an addition":   {order(id, amountLong), order(id), order(id, amountDefault)},
		"int to long, over two additions": {order(id, amountInt), order(id, amountInt, noteDefault), order(id, amountLong, noteDefault)},
	}
	tests := []struct{ history, compatible string }{
		{"the same", "NONE BACKWARD BACKWARD_TRANSITIVE FORWARD FORWARD_TRANSITIVE FULL FULL_TRANSITIVE"},
		{"field added with default", "NONE BACKWARD BACKWARD_TRANSITIVE FORWARD FORWARD_TRANSITIVE FULL FULL_TRANSITIVE"},
		{"field added without default", "NONE FORWARD FORWARD_TRANSITIVE"},
		{"field without default removed", "NONE BACKWARD BACKWARD_TRANSITIVE"},
		{"field with default removed", "NONE BACKWARD BACKWARD_TRANSITIVE FORWARD FORWARD_TRANSITIVE FULL FULL_TRANSITIVE"},
		{"int to long", "NONE BACKWARD BACKWARD_TRANSITIVE"},
		{"long to int", "NONE FORWARD FORWARD_TRANSITIVE"},
		{"another record", "NONE"},
		// In these histories, transitive levels differ from the others.
		{"default gone while field was", "NONE BACKWARD FORWARD FORWARD_TRANSITIVE FULL"},
		{"field back, default in between", "NONE BACKWARD BACKWARD_TRANSITIVE FORWARD FULL"},
		{"long to int, over an addition", "NONE BACKWARD FORWARD FORWARD_TRANSITIVE FULL"},
		{"int to long, over two additions", "NONE BACKWARD BACKWARD_TRANSITIVE"},
	}
	levels := strings.Fields("NONE BACKWARD BACKWARD_TRANSITIVE FORWARD FORWARD_TRANSITIVE FULL FULL_TRANSITIVE")
	for _, test := range tests {
		for _, level := range levels {
			t.Run(test.history+"/"+level, func(t *testing.T) {
				box := registryOnly(t)
				request(t, box, "PUT", "/config", `{"compatibility":"NONE"}`)
				history := histories[test.history]
				candidate := schemaBody(t, history[len(history)-1])
				for _, schema := range history[:len(history)-1] {
					if got := request(t, box, "POST", "/subjects/s/versions", schemaBody(t, schema)); !strings.HasPrefix(got, "200 ") {
						t.Fatal(got)
					}
				}
				request(t, box, "PUT", "/config/s", `{"compatibility":"`+level+`"}`)
				want := strings.Contains(" "+test.compatible+" ", " "+level+" ")
				check := request(t, box, "POST", "/compatibility/subjects/s/versions?verbose=true", candidate)
				if strings.Contains(check, `"is_compatible":true`) != want {
					t.Errorf("the check answers %s, want compatible: %v", check, want)
				}
				if !want && !strings.Contains(check, `"messages":["`) {
					t.Errorf("the check gives no reason: %s", check)
				}
				registered := request(t, box, "POST", "/subjects/s/versions", candidate)
				if strings.HasPrefix(registered, "200 ") != want {
					t.Errorf("registering answers %s, want compatible: %v", registered, want)
				}
				if !want && !strings.HasPrefix(registered, `409 {"error_code":409,`) {
					t.Errorf("rejected with %s", registered)
				}
			})
		}
	}
}

func TestDefaultLevelIsBackwardTransitive(t *testing.T) {
	box := registryOnly(t)
	if got := request(t, box, "GET", "/config", ""); got != `200 {"compatibilityLevel":"BACKWARD_TRANSITIVE"}` {
		t.Error(got)
	}
}

func TestEqualSchemasShareAnID(t *testing.T) {
	box := registryOnly(t)
	client := newRegistry(t, box)
	first, second := parse(t, order(id)), parse(t, order(id, noteDefault))
	register := func(subject string, s *codec.Schema) int {
		t.Helper()
		got, err := client.Register(t.Context(), subject, s)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	a := register("a", first)
	if b := register("b", first); b != a {
		t.Errorf("under another subject the id is %d, expected %d", b, a)
	}
	spaced := parse(t, `{ "name": "Order", "namespace": "shop", "type": "record", "fields": [ `+id+` ] }`)
	if c := register("c", spaced); c != a {
		t.Errorf("with other white space the id is %d, expected %d", c, a)
	}
	if again := register("a", first); again != a {
		t.Errorf("registered again the id is %d, expected %d", again, a)
	}
	if other := register("a", second); other == a {
		t.Error("another schema has the same id")
	}
	if documented := register("d", parse(t, strings.Replace(order(id), `"type":"record"`, `"type":"record","doc":"An order."`, 1))); documented == a {
		t.Error("a schema with another doc has the same id, so the doc would be lost")
	}
	if got := request(t, box, "GET", fmt.Sprintf("/schemas/ids/%d/versions", a), ""); got !=
		`200 [{"subject":"a","version":1},{"subject":"b","version":1},{"subject":"c","version":1}]` {
		t.Error(got)
	}
	if got := request(t, box, "GET", "/subjects/a/versions", ""); got != "200 [1,2]" {
		t.Error(got)
	}
}

func TestAnswersMatchConfluentRegistry(t *testing.T) {
	schema, other := schemaBody(t, order(id)), schemaBody(t, order(id, noteDefault))
	steps := []struct{ method, path, body, want string }{
		{"GET", "/", "", `200 {}`},
		{"GET", "/subjects", "", `200 []`},
		{"GET", "/schemas/types", "", `200 ["AVRO"]`},
		{"GET", "/mode", "", `200 {"mode":"READWRITE"}`},
		{"PUT", "/mode", `{"mode":"IMPORT"}`, `422 {"error_code":42204,`},
		{"PUT", "/mode", `{"mode":"READONLY"}`, `200 {"mode":"READONLY"}`},
		{"POST", "/subjects/s/versions", schema, `422 {"error_code":42205,`},
		{"PUT", "/config/s", `{"compatibility":"FULL"}`, `422 {"error_code":42205,`},
		{"GET", "/mode/s", "", `404 {"error_code":40409,`},
		{"GET", "/mode/s?defaultToGlobal=true", "", `200 {"mode":"READONLY"}`},
		{"PUT", "/mode", `{"mode":"READWRITE"}`, `200 {"mode":"READWRITE"}`},
		{"PUT", "/mode/s", `{"mode":"READONLY"}`, `200 {"mode":"READONLY"}`},
		{"GET", "/mode/s", "", `200 {"mode":"READONLY"}`},
		{"POST", "/subjects/s/versions", schema, `422 {"error_code":42205,`},
		{"DELETE", "/mode/s", "", `200 {"mode":"READONLY"}`},
		{"GET", "/nothing", "", `404 {"error_code":404,`},
		{"GET", "/schemas/ids/1", "", `404 {"error_code":40403,`},
		{"GET", "/schemas/guids/0", "", `404 {"error_code":40403,`},
		{"GET", "/subjects/s/versions", "", `404 {"error_code":40401,`},
		{"GET", "/subjects/s/versions/latest", "", `404 {"error_code":40401,`},
		{"POST", "/subjects/s", schema, `404 {"error_code":40401,`},
		{"POST", "/compatibility/subjects/s/versions/latest", schema, `404 {"error_code":40401,`},
		{"POST", "/compatibility/subjects/s/versions", schema, `200 {"is_compatible":true}`},

		{"POST", "/subjects/s/versions", `{"schema":`, `400 {"error_code":400,`},
		{"POST", "/subjects/s/versions", `{"schema":"{}"}`, `422 {"error_code":42201,`},
		{"POST", "/subjects/s/versions", `{"schema":"{"}`, `422 {"error_code":42201,`},
		{"POST", "/subjects/s/versions", `{"schema":"{}","schemaType":"JSON"}`, `422 {"error_code":42201,`},
		{"POST", "/subjects/s/versions", strings.Replace(schema, "{", `{"id":7,`, 1), `422 {"error_code":42205,`},
		{"POST", "/subjects/s/versions", schema, `200 {"subject":"s","version":1,"id":1,"guid":"`},
		{"POST", "/subjects/s/versions", other, `200 {"subject":"s","version":2,"id":2,"guid":"`},
		{"POST", "/subjects/s/versions", schemaBody(t, order(note)), `409 {"error_code":409,`},

		{"GET", "/subjects/s/versions/1/schema", "", `200 ` + order(id)},
		{"GET", "/schemas/ids/1/schema", "", `200 ` + order(id)},
		{"GET", "/subjects/s/versions/3", "", `404 {"error_code":40402,`},
		{"GET", "/subjects/s/versions/0", "", `422 {"error_code":42202,`},
		{"GET", "/subjects/s/versions/last", "", `422 {"error_code":42202,`},
		{"GET", "/subjects/s/versions/latest", "", `200 {"subject":"s","version":2,"id":2,`},
		{"POST", "/subjects/s", schemaBody(t, order(note)), `404 {"error_code":40403,`},
		{"POST", "/subjects/s", schema, `200 {"subject":"s","version":1,"id":1,`},
		{"POST", "/compatibility/subjects/s/versions/1?verbose=true", schemaBody(t, order(note)),
			`200 {"is_compatible":false,"messages":["the new schema cannot read data of version 1: avro: incompatible at note:`},

		{"GET", "/config/s", "", `404 {"error_code":40408,`},
		{"GET", "/config/s?defaultToGlobal=true", "", `200 {"compatibilityLevel":"BACKWARD_TRANSITIVE"}`},
		{"PUT", "/config/s", `{"compatibility":"SIDEWAYS"}`, `422 {"error_code":42203,`},
		{"PUT", "/config/s", `{"compatibility":"FULL"}`, `200 {"compatibility":"FULL"}`},
		{"GET", "/config/s", "", `200 {"compatibilityLevel":"FULL"}`},
		{"DELETE", "/config/s", "", `200 {"compatibility":"FULL"}`},
		{"DELETE", "/config/s", "", `404 {"error_code":40408,`},

		{"DELETE", "/subjects/s/versions/1?permanent=true", "", `404 {"error_code":40407,`},
		{"DELETE", "/subjects/s/versions/1", "", `200 1`},
		{"DELETE", "/subjects/s/versions/1", "", `404 {"error_code":40406,`},
		{"GET", "/subjects/s/versions", "", `200 [2]`},
		{"GET", "/subjects/s/versions?deleted=true", "", `200 [1,2]`},
		{"GET", "/schemas/ids/1/schema", "", `200 ` + order(id)}, // topics may still hold records with it
		{"DELETE", "/subjects/s/versions/1?permanent=true", "", `200 1`},
		{"GET", "/schemas/ids/1", "", `404 {"error_code":40403,`},
		{"DELETE", "/subjects/s?permanent=true", "", `404 {"error_code":40405,`},
		{"DELETE", "/subjects/s", "", `200 [2]`},
		{"DELETE", "/subjects/s", "", `404 {"error_code":40404,`},
		{"GET", "/subjects", "", `200 []`},
		{"GET", "/subjects?deleted=true", "", `200 ["s"]`},
		{"DELETE", "/subjects/s?permanent=true", "", `200 [2]`},
		{"DELETE", "/subjects/s", "", `404 {"error_code":40401,`},
		{"POST", "/subjects/s/versions", schema, `200 {"subject":"s","version":1,"id":3,`}, // ids are not reused
		{"POST", "/subjects/a%2Fb/versions", schema, `200 {"subject":"a/b","version":1,"id":3,`},
	}
	box := registryOnly(t)
	for _, s := range steps {
		if got := request(t, box, s.method, s.path, s.body); !strings.HasPrefix(got, s.want) {
			t.Errorf("%s %s %s\ngot  %s\nwant %s", s.method, s.path, s.body, got, s.want)
		}
	}
}

func TestReferencesAreResolvedAndPreventDeletion(t *testing.T) {
	box := registryOnly(t)
	item := `{"type":"record","name":"Item","namespace":"shop","fields":[` + id + `]}`
	cart := `{"type":"record","name":"Cart","namespace":"shop","fields":[{"name":"items","type":{"type":"array","items":"shop.Item"}}]}`
	body, err := json.Marshal(sr.Schema{Schema: cart, References: []sr.SchemaReference{{Name: "shop.Item", Subject: "item", Version: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := request(t, box, "POST", "/subjects/cart/versions", string(body)); !strings.Contains(got, "subject item has no version 1") {
		t.Errorf("with a dangling reference: %s", got)
	}
	request(t, box, "POST", "/subjects/item/versions", schemaBody(t, item))
	if got := request(t, box, "POST", "/subjects/cart/versions", string(body)); !strings.HasPrefix(got, "200 ") {
		t.Fatal(got)
	}
	if got := request(t, box, "GET", "/subjects/item/versions/1/referencedby", ""); got != "200 [2]" {
		t.Error(got)
	}
	if got := request(t, box, "DELETE", "/subjects/item", ""); !strings.HasPrefix(got, `422 {"error_code":42206,`) {
		t.Errorf("deleting a referenced subject: %s", got)
	}
	s, err := newRegistry(t, box).Schema(t.Context(), codec.SchemaRef{ID: 2})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Root().Field("items").Type.String(); got != "array of shop.Item" {
		t.Errorf("items is %s", got)
	}
}

func TestCodecRegistryClient(t *testing.T) {
	box := registryOnly(t)
	client := newRegistry(t, box)
	ctx := t.Context()
	if err := client.Ping(ctx); err != nil {
		t.Error(err)
	}
	s := parse(t, order(id))
	subject := codec.TopicRecordName.Value("shop.events", s)
	if subject != "shop.events-shop.Order" {
		t.Errorf("subject %s", subject)
	}
	if err := client.Compatible(ctx, subject, s); err != nil {
		t.Errorf("compatibility with an empty subject: %v", err)
	}
	if _, err := client.Lookup(ctx, subject, s); !errors.Is(err, codec.ErrNotRegistered) {
		t.Errorf("lookup of an unregistered schema: %v", err)
	}
	n, err := client.Register(ctx, subject, s)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := client.Lookup(ctx, subject, s); found != n || err != nil {
		t.Errorf("looked up %d, %v, expected %d", found, err, n)
	}
	if got, err := client.Schema(ctx, codec.SchemaRef{ID: n}); err != nil || got.Name() != "shop.Order" {
		t.Errorf("schema %v, %v", got, err)
	}
	broken := parse(t, order(id, note))
	for what, err := range map[string]error{
		"compatible": client.Compatible(ctx, subject, broken),
		"register":   func() error { _, err := client.Register(ctx, subject, broken); return err }(),
	} {
		if !errors.Is(err, codec.ErrIncompatible) || !strings.Contains(err.Error(), "at note") || !strings.Contains(err.Error(), subject) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := client.SetCompatibility(ctx, subject, "FORWARD"); err != nil {
		t.Error(err)
	}
	if err := client.Compatible(ctx, subject, broken); err != nil {
		t.Errorf("with another level: %v", err)
	}
	if err := client.SetCompatibility(ctx, subject, "SIDEWAYS"); err == nil {
		t.Error("a level that does not exist was set")
	}
	var shown sr.SubjectSchema
	answer, _ := strings.CutPrefix(request(t, box, "GET", "/subjects/"+subject+"/versions/1", ""), "200 ")
	if err := json.Unmarshal([]byte(answer), &shown); err != nil {
		t.Fatal(err)
	}
	if got, err := client.Schema(ctx, byGUID(t, shown.GUID)); err != nil || got.Name() != "shop.Order" {
		t.Errorf("by guid %s: %v, %v", shown.GUID, got, err)
	}
}

func byGUID(t *testing.T, text string) codec.SchemaRef {
	t.Helper()
	guid, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(guid) != 16 {
		t.Fatalf("%q is no GUID: %v", text, err)
	}
	return codec.SchemaRef{ByGUID: true, GUID: [16]byte(guid)}
}

func TestDamagedRegistryFileIsRejected(t *testing.T) {
	for name, text := range map[string]string{
		"truncated":            `{"format":1,"next_id":2`,
		"unknown format":       `{"format":2,"next_id":1,"compatibility":"NONE","schemas":{},"subjects":{}}`,
		"unknown field":        `{"format":1,"next_id":1,"compatibility":"NONE","schemas":{},"subjects":{},"x":1}`,
		"id not below next_id": `{"format":1,"next_id":1,"compatibility":"NONE","schemas":{"1":{"schema":"\"int\""}},"subjects":{}}`,
		"invalid schema":       `{"format":1,"next_id":2,"compatibility":"NONE","schemas":{"1":{"schema":"\"inn\""}},"subjects":{}}`,
		"missing schema":       `{"format":1,"next_id":2,"compatibility":"NONE","schemas":{},"subjects":{"s":{"versions":[{"version":1,"id":1}]}}}`,
		"repeated version":     `{"format":1,"next_id":2,"compatibility":"NONE","schemas":{"1":{"schema":"\"int\""}},"subjects":{"s":{"versions":[{"version":1,"id":1},{"version":1,"id":1}]}}}`,
		"unknown level":        `{"format":1,"next_id":1,"compatibility":"","schemas":{},"subjects":{}}`,
		"trailing value":       `{"format":1,"next_id":1,"compatibility":"NONE","schemas":{},"subjects":{}} {}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "registry.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			box, err := sandbox.New(sandbox.Config{NoBroker: true, DataDir: dir})
			if err == nil {
				t.Fatal("the file was accepted", box.Close())
			}
			if !strings.Contains(err.Error(), "registry.json: ") {
				t.Errorf("the error does not name the file: %v", err)
			}
		})
	}
}

func TestChangeThatCannotBeSavedIsNotApplied(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	box := start(t, sandbox.Config{NoBroker: true, DataDir: dir})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if got := request(t, box, "POST", "/subjects/s/versions", schemaBody(t, order(id))); !strings.HasPrefix(got, `500 {"error_code":50001,`) {
		t.Error(got)
	}
	if got := request(t, box, "GET", "/subjects", ""); got != "200 []" {
		t.Errorf("the unsaved change is visible: %s", got)
	}
}

func newRegistry(t *testing.T, box *sandbox.Sandbox) *codec.Registry {
	t.Helper()
	client, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{box.RegistryURL()}})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func parse(t *testing.T, text string) *codec.Schema {
	t.Helper()
	s, err := codec.ParseSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
