"""`python -m tfmp`: lists what can be run. Loads neither Keras nor TensorFlow."""

import ast
import pathlib
import pkgutil

import tfmp


def main():
    """Prints each program with the first line of its docstring."""
    package = pathlib.Path(tfmp.__file__).parent
    recipes = package / "recipes"
    print(f"tfmp {tfmp.__version__}: mixed-precision training for Keras on TensorFlow\n\nRecipes:")
    for module in pkgutil.iter_modules([str(recipes)]):
        doc = ast.get_docstring(ast.parse((recipes / f"{module.name}.py").read_text())) or ""
        print(f"  python -m tfmp.recipes.{module.name:<10}  {doc.splitlines()[0]}")
    print("\nAdd --help to any of them for its flags and examples.")


if __name__ == "__main__":
    main()
