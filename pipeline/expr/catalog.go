package expr

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/common/decls"

	"millrace/pipeline/expr/library"
	"millrace/pipeline/expr/wording"
)

// A Function is the documentation of one function.
type Function = library.Function

// Functions documents every function and macro that an expression can call,
// ordered by group.
func Functions() []Function {
	env, err := NewEnv()
	if err != nil {
		panic(err) // the libraries conflict: every expression and every test would fail too
	}
	out := library.Catalog()
	for i := range out {
		f := &out[i]
		if f.Signatures == nil {
			f.Signatures = signatures(env.cel.Functions()[f.Name])
		}
	}
	return out
}

// signatures returns the signatures of a function. It omits unsigned numbers,
// because no event has them.
func signatures(decl *decls.FunctionDecl) []string {
	if decl == nil {
		return nil
	}
	var out []string
	for _, o := range decl.OverloadDecls() {
		if s := signature(decl.Name(), o); !strings.Contains(s, "uint") {
			out = append(out, s+" -> "+strings.ReplaceAll(celWord(o.ResultType()), "value of any type", "value"))
		}
	}
	return out
}

// signature returns a text such as "string.split(string)" or "sha256(bytes)".
func signature(name string, o *decls.OverloadDecl) string {
	var args []string
	for _, a := range o.ArgTypes() {
		args = append(args, strings.ReplaceAll(celWord(a), "value of any type", "value"))
	}
	name = wording.Function(name)
	if !o.IsMemberFunction() {
		return fmt.Sprintf("%s(%s)", name, strings.Join(args, ", "))
	}
	target := args[0]
	if strings.Contains(target, " ") {
		target = target[:strings.IndexByte(target, ' ')] // list, map
	}
	return fmt.Sprintf("%s.%s(%s)", target, name, strings.Join(args[1:], ", "))
}
