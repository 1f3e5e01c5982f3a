package tasks

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryReasonHasItsWords reads the source: each constant of type Code has a row in the table with a code of its own,
// a sentence and a fix, and is given by some line of the package.
func TestEveryReasonHasItsWords(t *testing.T) {
	t.Parallel()
	fset := token.NewFileSet()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	uses := map[string]int{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		var visit func(ast.Node) bool
		visit = func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GenDecl:
				if n.Tok != token.CONST || len(n.Specs) == 0 {
					return true
				}
				if id, ok := n.Specs[0].(*ast.ValueSpec).Type.(*ast.Ident); !ok || id.Name != "Code" {
					return true
				}
				for _, spec := range n.Specs {
					names = append(names, spec.(*ast.ValueSpec).Names[0].Name)
				}
				return false
			case *ast.KeyValueExpr: // a row of the table
				ast.Inspect(n.Value, visit)
				return false
			case *ast.SelectorExpr: // the name of another thing
				ast.Inspect(n.X, visit)
				return false
			case *ast.Field:
				return false
			case *ast.Ident:
				uses[n.Name]++
			}
			return true
		}
		ast.Inspect(f, visit)
	}
	if len(names) != int(codes)+1 || names[0] != "None" || names[len(names)-1] != "codes" {
		t.Fatalf("%d constants of type Code in the source, want None, %d codes, and codes: %v", len(names), codes-1, names)
	}
	seen := map[string]string{}
	for i, name := range names[1:codes] {
		r := table[i+1]
		switch {
		case r.Code == "" || strings.Trim(r.Code, "abcdefghijklmnopqrstuvwxyz_") != "":
			t.Errorf("%s: code %q: want small letters", name, r.Code)
		case seen[r.Code] != "":
			t.Errorf("%s has the code %q of %s", name, r.Code, seen[r.Code])
		case len(strings.Fields(r.Text)) < 2:
			t.Errorf("%s: %q is no sentence", name, r.Text)
		case len(strings.Fields(r.Fix)) < 3:
			t.Errorf("%s: %q is no fix", name, r.Fix)
		case uses[name] < 1:
			t.Errorf("%s is never given as a reason", name)
		}
		seen[r.Code] = name
	}
}
