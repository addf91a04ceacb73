package topology

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/topology/avsc"
)

// A catalog holds the records of the .avsc files.
type catalog struct {
	dir     string                     // name of the directory for messages
	byName  map[string]*codec.Schema   // by full name
	byShort map[string][]*codec.Schema // by name without namespace
	byFile  map[string]*codec.Schema   // by file name without .avsc
	older   map[string]*codec.Schema   // shapes of older writers, by file name without .avsc
	unions  map[string][]*codec.Schema // records of a file with a union, by file name without .avsc
	set     *avsc.Set                  // all files; nil if there are none
	inner   map[string]*codec.Schema   // records within other types that were asked for, by name
	broken  map[string]bool            // files with faults, by file name without .avsc
}

// olderFile matches the file name, without .avsc, of an older shape of a record.
var olderFile = regexp.MustCompile(`\.v[0-9]+$`)

// readSchemas reads the .avsc files of the directory.
func (d *document) readSchemas(files fs.FS, dir string) *catalog {
	if dir == "" {
		dir = "schemas"
	}
	c := &catalog{
		dir: dir, byName: map[string]*codec.Schema{}, byShort: map[string][]*codec.Schema{}, byFile: map[string]*codec.Schema{},
		older: map[string]*codec.Schema{}, unions: map[string][]*codec.Schema{}, inner: map[string]*codec.Schema{}, broken: map[string]bool{},
	}
	if files == nil {
		return c
	}
	set, err := avsc.Read(files)
	if err != nil {
		d.faults = append(d.faults, Fault{File: dir, Msg: err.Error()})
	}
	c.set = set
	from := map[string]string{}
	for _, unions := range []bool{false, true} { // a union may refer to the records of other files
		for i := range set.Files {
			if f := &set.Files[i]; (len(f.Records) > 1) == unions {
				d.readSchema(c, f, from)
			}
		}
	}
	return c
}

// readSchema adds the records of a file to the catalog. from holds the files of records.
func (d *document) readSchema(c *catalog, f *avsc.File, from map[string]string) {
	file, base := path.Join(c.dir, f.Name), strings.TrimSuffix(path.Base(f.Name), ".avsc")
	fail := func(f Fault) {
		d.faults = append(d.faults, f)
		c.broken[base] = true
	}
	err := f.Err
	for _, s := range f.Records {
		if err == nil {
			_, err = s.Tagged()
		}
	}
	var kind *avsc.KindError
	switch {
	case errors.As(err, &kind):
		fail(Fault{File: file, Msg: err.Error(), Hint: "a schema file must contain a record, a union of records, or a named type that other files use"})
		return
	case err != nil && f.Text == nil:
		fail(Fault{File: file, Msg: err.Error()})
		return
	case err != nil:
		fail(schemaFault(file, f.Text, err))
		return
	case olderFile.MatchString(base) && len(f.Records) == 1:
		c.older[base] = f.Records[0]
		return
	}
	var all []*codec.Schema
	for _, s := range f.Records {
		have := c.byName[s.Name()]
		if have == nil {
			from[s.Name()] = f.Name
			c.byName[s.Name()] = s
			c.byShort[short(s)] = append(c.byShort[short(s)], s)
			have = s
		} else if len(f.Records) == 1 || !codec.SameBytes(have, s) {
			fail(Fault{
				File: file, Msg: fmt.Sprintf("%s is already defined in %s", s.Name(), path.Join(c.dir, from[s.Name()])),
				Hint: "rename or remove one of them; keep an older shape in a file such as " + short(s) + ".v1.avsc",
			})
			return
		}
		all = append(all, have)
	}
	if len(all) == 1 {
		c.byFile[base] = all[0]
	} else if len(all) > 1 {
		c.unions[base] = all
	}
}

// all returns the records that a word in the types of a topic names: a record or, by the
// name of its file, those of a union. Without any it returns a message and a hint, like
// find.
func (c *catalog) all(name string) (records []*codec.Schema, msg, hint string) {
	if records := c.unions[name]; records != nil && len(c.byShort[name]) == 0 {
		return records, "", ""
	}
	s, msg, hint := c.find(name)
	if s == nil {
		return nil, msg, hint
	}
	return []*codec.Schema{s}, "", ""
}

// inside finds a record that a file defines within another type, like find.
func (c *catalog) inside(name string) (s *codec.Schema, msg, hint string) {
	if s := c.inner[name]; s != nil || c.set == nil {
		return s, "", ""
	}
	s, names, err := c.set.Named(name)
	switch {
	case err != nil:
		return nil, fmt.Sprintf("the schema of %s: %v", name, err), ""
	case s == nil && len(names) > 1:
		return nil, "several schemas are named " + name, "write the full name: " + strings.Join(names, " or ")
	case s == nil:
		return nil, "", ""
	case s.Root().Kind != codec.Record:
		return nil, fmt.Sprintf("the schema %s is of kind %s, not a record", name, s.Root().Kind), "name a record"
	}
	if have := c.inner[s.Name()]; have != nil {
		s = have
	}
	c.inner[name], c.inner[s.Name()] = s, s
	return s, "", ""
}

// short returns the name of a schema's record without its namespace.
func short(s *codec.Schema) string { return baseName(s.Name()) }

func baseName(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// find returns the record with a name, short or full. If there is none, it returns a
// message and a hint. The message is empty if the record's file has a fault, which is
// already reported.
func (c *catalog) find(name string) (s *codec.Schema, msg, hint string) {
	if s := c.byName[name]; s != nil {
		return s, "", ""
	}
	switch found := c.byShort[name]; {
	case len(found) == 1:
		return found[0], "", ""
	case len(found) > 1:
		names := make([]string, len(found))
		for i := range found {
			names[i] = found[i].Name()
		}
		return nil, "several schemas are named " + name, "write the full name: " + strings.Join(names, " or ")
	}
	if c.broken[name] || c.broken[baseName(name)] {
		return nil, "", ""
	}
	if s, msg, hint := c.inside(name); s != nil || msg != "" {
		return s, msg, hint
	}
	for _, file := range []string{name, baseName(name)} {
		if s := c.byFile[file]; s != nil {
			return nil, fmt.Sprintf("there is no schema %s: %s.avsc in %s defines the record %s", name, file, c.dir, s.Name()),
				fmt.Sprintf("write %s here, or rename the record in the file", short(s))
		}
	}
	names := slices.Concat(slices.Sorted(maps.Keys(c.byShort)), slices.Sorted(maps.Keys(c.byName)))
	hint = expr.Suggest(name, names)
	if hint == "" {
		hint = c.dir + " contains no usable .avsc file"
		if short := slices.Sorted(maps.Keys(c.byShort)); len(short) > 0 {
			hint = "the schemas there are " + listed(short)
		}
	}
	file := baseName(name)
	if olderFile.MatchString(name) {
		file = name
	}
	return nil, fmt.Sprintf("there is no schema %s in %s (expected file: %s.avsc)", name, c.dir, file), hint
}

// listed joins names for a message, and cuts a long list.
func listed(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// schemaFault describes why the schema in a file is invalid, with its place. err is the
// error of the Avro library.
func schemaFault(file string, text []byte, err error) Fault {
	offset, msg, hint := avsc.Explain(text, err)
	if offset < 0 {
		return Fault{File: file, Msg: msg}
	}
	before := string(text[:min(offset, len(text))])
	start := strings.LastIndexByte(before, '\n') + 1
	line, _, _ := strings.Cut(string(text[start:]), "\n")
	return Fault{
		File: file, Line: 1 + strings.Count(before, "\n"), Col: 1 + utf8.RuneCountInString(before[start:]),
		Msg: msg, Hint: hint, Text: strings.TrimSuffix(line, "\r"),
	}
}
