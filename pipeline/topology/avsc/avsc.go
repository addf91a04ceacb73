// Package avsc reads a directory of schema files. The files may have comments and refer
// to types of each other, in any order.
//
// Start at [Read]. expand.go puts the types that a file refers to into its schema;
// explain.go locates what is wrong in a schema.
package avsc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"millrace/pipeline/codec"
)

// A File is a schema file.
type File struct {
	Name string // path in the directory
	Text []byte // as it is read: comments are spaces, so places are those of the file

	// Records holds the record of the file, or those of a union. It is empty for a file
	// of another named type, which only other files use.
	Records []*codec.Schema
	Err     error
}

// Set holds the files of a directory.
type Set struct {
	Files []File // in the order of their names
	types *index
}

// Read reads the .avsc files of a directory and those below it. Names that begin with a
// dot are left out. The error of a file is in the file; other errors are returned.
func Read(dir fs.FS) (*Set, error) {
	s := &Set{types: &index{defs: map[string][]definition{}}}
	var docs []any
	err := fs.WalkDir(dir, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base := path.Base(name); len(base) > 1 && base[0] == '.' {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || !strings.HasSuffix(name, ".avsc") {
			return nil
		}
		f := File{Name: name}
		var doc any
		if f.Text, f.Err = fs.ReadFile(dir, name); f.Err == nil {
			f.Text = blankComments(f.Text)
			doc, f.Err = parse(f.Text)
		}
		if f.Err == nil && !isOlder(name) {
			s.types.collect(doc, "", name, 0)
		}
		s.Files, docs = append(s.Files, f), append(docs, doc)
		return nil
	})
	for i := range s.Files {
		if f := &s.Files[i]; f.Err == nil {
			f.Records, f.Err = s.types.schemas(f, docs[i])
		}
	}
	return s, err
}

// One reads one file of a directory, with the types of the others.
func One(dir fs.FS, name string) (*codec.Schema, error) {
	if _, err := fs.Stat(dir, name); err != nil {
		return nil, err
	}
	s, err := Read(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range s.Files {
		switch {
		case f.Name != name:
		case f.Err != nil:
			return nil, f.Err
		case len(f.Records) != 1:
			return nil, fmt.Errorf("%s does not contain one record", name)
		default:
			return f.Records[0], nil
		}
	}
	return nil, fmt.Errorf("%s is not a schema file", name)
}

// isOlder reports whether a file has an older shape of a record, such as Order.v1.avsc. No
// other file refers to it.
func isOlder(name string) bool {
	base := strings.TrimSuffix(path.Base(name), ".avsc")
	at := strings.LastIndex(base, ".v")
	return at >= 0 && strings.Trim(base[at+2:], "0123456789") == ""
}

// Named returns the type with a full or a short name, also if a file defines it within
// another type; nil if there is none. If there are several, names holds their full names.
func (s *Set) Named(name string) (schema *codec.Schema, names []string, err error) {
	for _, full := range s.types.names {
		if full == name {
			names = []string{full}
			break
		}
		if full[strings.LastIndexByte(full, '.')+1:] == name {
			names = append(names, full)
		}
	}
	if len(names) != 1 {
		return nil, names, nil
	}
	text, err := s.types.text(names[0])
	if err != nil {
		return nil, names, err
	}
	schema, err = codec.ParseSchema(text)
	return schema, names, err
}

// parse parses a JSON text with the numbers as they are written.
func parse(text []byte) (doc any, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, json.Unmarshal(text, new(any)) // a syntax error with its place
	}
	return doc, nil
}

// blankComments replaces // and /* */ comments by spaces, except for the ends of lines.
func blankComments(text []byte) []byte {
	out := slices.Clone(text)
	quoted := false
	for i := 0; i < len(out); i++ {
		switch {
		case quoted && out[i] == '\\':
			i++
		case out[i] == '"':
			quoted = !quoted
		case quoted && out[i] == '\n':
			quoted = false // a string that is not closed: the JSON parser reports it
		case quoted || out[i] != '/' || i+1 == len(out):
		case out[i+1] == '/':
			i = blank(out, i, "\n")
		case out[i+1] == '*':
			i = blank(out, i, "*/")
		}
	}
	return out
}

// blank blanks a comment that starts at i and returns the position of its last byte. An
// open comment reaches to the end.
func blank(text []byte, i int, end string) int {
	last := len(text)
	if at := bytes.Index(text[i+2:], []byte(end)); at >= 0 {
		last = i + 2 + at + len(end)
	}
	for ; i < last; i++ {
		if c := text[i]; c != '\n' && c != '\r' {
			text[i] = ' '
		}
	}
	return last - 1
}

// schemas returns the records of a file.
func (x *index) schemas(f *File, doc any) ([]*codec.Schema, error) {
	branches, isUnion := doc.([]any)
	if !isUnion {
		s, err := x.schema(f, doc)
		switch {
		case err != nil:
			return nil, err
		case s.Root().Kind == codec.Record:
			return []*codec.Schema{s}, nil
		case s.Root().Name == "":
			return nil, &KindError{s.Root()}
		}
		return nil, nil
	}
	if _, err := x.schema(f, doc); err != nil { // the branches fit each other
		return nil, err
	}
	var records []*codec.Schema
	for _, b := range branches {
		text, err := x.expanded(b)
		if err != nil {
			return nil, err
		}
		s, err := codec.ParseSchema(text)
		if err != nil {
			return nil, err
		}
		if s.Root().Kind != codec.Record {
			return nil, &KindError{s.Root()}
		}
		records = append(records, s)
	}
	return records, nil
}

// schema returns the schema of a file: its own text unless it refers to other files.
func (x *index) schema(f *File, doc any) (*codec.Schema, error) {
	own := &index{defs: map[string][]definition{}}
	own.collect(doc, "", f.Name, 0)
	if !own.refersTo(x, doc, "") {
		return codec.ParseSchema(string(f.Text))
	}
	text, err := x.expanded(doc)
	if err != nil {
		return nil, err
	}
	return codec.ParseSchema(text)
}

// A KindError is the error for a file, or for a branch of its union, that is not a record.
type KindError struct{ Type *codec.Node }

func (e *KindError) Error() string { return fmt.Sprintf("the schema is %s, not a record", e.Type) }
