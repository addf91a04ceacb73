// Package openapitest holds HTTP handlers to their OpenAPI document: tests give it answers,
// and it checks them against the document.
//
// Start at [Open]. The goroutine of the test owns a [Document].
package openapitest

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"millrace/pipeline/access"
	"millrace/pipeline/harness"
)

// A Document is an OpenAPI document under test.
type Document struct {
	t        *testing.T
	doc      any
	compiler *jsonschema.Compiler
	seen     map[string]bool // "METHOD PATH STATUS"
}

// Open reads the document in a file. It must be the one that the program serves; with
// UPDATE_SCRIPTS set, the file becomes it. If served is nil, another test compares them.
func Open(t *testing.T, file string, served []byte) *Document {
	t.Helper()
	if os.Getenv("UPDATE_SCRIPTS") != "" && served != nil {
		harness.Write(t, file, served)
	}
	kept, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if served != nil && !bytes.Equal(kept, served) {
		t.Errorf("%s differs from the document that the program serves: run this test with UPDATE_SCRIPTS=1", file)
	}
	d := &Document{t: t, compiler: jsonschema.NewCompiler(), seen: map[string]bool{}}
	if d.doc, err = jsonschema.UnmarshalJSON(bytes.NewReader(kept)); err != nil {
		t.Fatal(err)
	}
	d.compiler.DefaultDraft(jsonschema.Draft2020)
	d.compiler.AssertFormat()
	if err := d.compiler.AddResource("openapi.json", d.doc); err != nil {
		t.Fatal(err)
	}
	return d
}

// An Operation is an operation of a document.
type Operation struct {
	Method, Path string
	Object       any // its object in the document
}

// Operations returns all operations, sorted.
func (d *Document) Operations() (out []Operation) {
	paths, _ := Member(d.doc, "paths").(map[string]any)
	for path, item := range paths {
		for method, op := range item.(map[string]any) {
			out = append(out, Operation{strings.ToUpper(method), path, op})
		}
	}
	slices.SortFunc(out, func(a, b Operation) int { return strings.Compare(a.Path+a.Method, b.Path+b.Method) })
	return out
}

// CheckRoutes checks that the document has exactly the routes of a program below /v1/, and
// that each names the role that it needs.
func (d *Document) CheckRoutes(program string) {
	d.t.Helper()
	roles := map[string]access.Role{}
	for _, r := range access.Routes() {
		if r.Program == program && strings.Contains(r.Pattern, " /v1/") {
			roles[r.Pattern] = r.Role
		}
	}
	for _, op := range d.Operations() {
		pattern := op.Method + " " + op.Path
		role, ok := roles[pattern]
		if !ok {
			d.t.Errorf("the document has %s, and the program has no such route", pattern)
		}
		want := fmt.Sprintf("[map[token:[%s]] map[certificate:[%s]]]", role, role)
		if got := fmt.Sprint(Member(op.Object, "security")); got != want {
			d.t.Errorf("%s: the document has the security %s, want %s", pattern, got, want)
		}
		delete(roles, pattern)
	}
	for pattern := range roles {
		d.t.Errorf("the document lacks %s", pattern)
	}
}

// Check compares an answer with the document: status, media type, body and required
// headers. path is that of the document. An answer to HEAD has no body to check.
func (d *Document) Check(what, method, path string, status int, header http.Header, body []byte) {
	d.t.Helper()
	head := method == http.MethodHead
	if head {
		method = http.MethodGet
	}
	op := Member(d.doc, "paths", path, strings.ToLower(method))
	if op == nil {
		d.t.Errorf("%s: the document has no %s %s", what, method, path)
		return
	}
	key := strconv.Itoa(status)
	d.seen[method+" "+path+" "+key] = true
	if Member(op, "responses", key) == nil {
		key = "default"
	}
	response := Member(op, "responses", key)
	headers, _ := Member(response, "headers").(map[string]any)
	for name, h := range headers {
		if Member(h, "required") == true && header.Get(name) == "" {
			d.t.Errorf("%s: the answer %d has no header %s", what, status, name)
		}
	}
	content, _ := Member(response, "content").(map[string]any)
	if head || len(content) == 0 && len(body) == 0 {
		return
	}
	kind := header.Get("Content-Type")
	if content[kind] == nil {
		d.t.Errorf("%s: the document has no answer %d of the type %q", what, status, kind)
		return
	}
	d.validate(what, body, "paths", path, strings.ToLower(method), "responses", key, "content", kind, "schema")
}

// CheckBody compares the body of a request with the document.
func (d *Document) CheckBody(what, method, path, kind string, body []byte) {
	d.t.Helper()
	d.validate(what, body, "paths", path, strings.ToLower(method), "requestBody", "content", kind, "schema")
}

// validate checks a text by the schema at a place of the document.
func (d *Document) validate(what string, text []byte, at ...string) {
	d.t.Helper()
	escape := strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D")
	pointer := ""
	for _, name := range at {
		pointer += "/" + escape.Replace(name)
	}
	schema, err := d.compiler.Compile("openapi.json#" + pointer)
	if err != nil {
		d.t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		d.t.Errorf("%s: %v", what, err)
		return
	}
	if err := schema.Validate(v); err != nil {
		d.t.Errorf("%s: %v", what, err)
	}
}

// Unseen returns the statuses of an operation that no answer had, except for default.
func (d *Document) Unseen(op Operation) (out []string) {
	responses, _ := Member(op.Object, "responses").(map[string]any)
	for status := range responses {
		if status != "default" && !d.seen[op.Method+" "+op.Path+" "+status] {
			out = append(out, status)
		}
	}
	slices.Sort(out)
	return out
}

// Member returns a value in nested JSON objects; nil if there is none.
func Member(v any, path ...string) any {
	for _, name := range path {
		o, _ := v.(map[string]any)
		v = o[name]
	}
	return v
}
